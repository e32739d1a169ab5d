"""Where a node comes from, in the user's words."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def module_path(node: fx.Node) -> str | None:
    """The path of the module that a node came from; None for the root."""
    if node.op == "call_module":
        return str(node.target)
    stack = _stack(node)
    return stack[-1][0] or None if stack else None


def is_inside(node: fx.Node, path: str) -> bool:
    """Whether a node came from the module of this path or from one of its parts."""
    return any(entry[0] == path for entry in _stack(node))


def module_type(node: fx.Node) -> str:
    """The class of the module that a node came from, as far as the graph remembers it."""
    stack = _stack(node)
    kind = stack[-1][1] if stack else ""
    return kind if isinstance(kind, str) else kind.__name__


def source_line(node: fx.Node) -> tuple[str, int] | None:
    """The innermost line of the user's own code, with the file's name alone."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = ((PurePath(file), line) for file, line in reversed(frames))
    return next(((path.name, int(line)) for path, line in own if "torch" not in path.parts), None)


def _stack(node: fx.Node) -> list[tuple[str, Any]]:
    """The modules around a node from the outside in; torch marks nodes of its own making with an `_empty` entry."""
    return [entry for entry in node.meta.get("nn_module_stack", {}).values() if not entry[0].startswith("_empty")]

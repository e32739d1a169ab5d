"""Where a node is, in the words of who wrote the network, as torch's exporter notes it."""

from __future__ import annotations

import ast
from pathlib import PurePath

import onnx_ir as ir


def module(node: ir.Node) -> str | None:
    """The path of the module that made the node; the note has the scopes from the root to the node."""
    noted = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    try:
        scopes = ast.literal_eval(noted) if noted else None
    except (ValueError, SyntaxError):  # not a note of torch's exporter
        return None
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str)] if isinstance(scopes, list) else []
    return modules[-1] if modules and modules[-1] else None


def source(node: ir.Node) -> tuple[str, int] | None:
    """File name and line of the call, of the stack trace."""
    trace = node.metadata_props.get("pkg.torch.onnx.stack_trace", "")
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith('File "')]
    outside = [frame for frame in frames if "site-packages" not in frame] or frames
    if not outside:
        return None
    path, _, rest = outside[-1].removeprefix('File "').partition('", line ')
    number = rest.partition(",")[0]
    return (PurePath(path).name, int(number)) if number.isdigit() else None

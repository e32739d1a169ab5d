"""onnx_ir imports sympy for arithmetic on symbolic sizes, which bnfold never does: 0.4 s that every command would pay.

Importing this module before onnx_ir gives onnx_ir a sympy that is loaded when it is first used. Nobody else sees it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands in for sympy: what is asked for while `loading` is found when it is called, all else at once."""

    loading = True

    def __getattr__(self, name: str) -> Any:
        if self.loading and not name.startswith("__"):
            return lambda *arguments, **named: getattr(import_module("sympy"), name)(*arguments, **named)
        return getattr(import_module("sympy"), name)


def _import_onnx_ir() -> None:
    if "sympy" in sys.modules or "onnx_ir" in sys.modules:
        return
    stand_in = sys.modules["sympy"] = _Deferred("sympy")
    try:
        import onnx_ir  # noqa: F401
    finally:
        stand_in.loading = False
        del sys.modules["sympy"]


_import_onnx_ir()

"""Fold batch normalisation out of inference graphs, prove that nothing changed, measure what it bought.

    folded = bnfold.fold(module, example_inputs)
    folded.report.raise_if_unfolded()
    bnfold.export("model.pt", "model.onnx")

Names are imported when they are first used: `import bnfold` itself is instant and imports no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.api import Folded as Folded
    from bnfold.api import Inspection as Inspection
    from bnfold.api import Recalibrated as Recalibrated
    from bnfold.api import bench as bench
    from bnfold.api import check as check
    from bnfold.api import export as export
    from bnfold.api import fold as fold
    from bnfold.api import inspect as inspect
    from bnfold.api import load as load
    from bnfold.api import recalibrate as recalibrate
    from bnfold.api import save as save
    from bnfold.benchmark import Benchmark as Benchmark
    from bnfold.errors import BnfoldError as BnfoldError
    from bnfold.errors import MissingDependency as MissingDependency
    from bnfold.errors import NotEquivalent as NotEquivalent
    from bnfold.errors import NoVerdict as NoVerdict
    from bnfold.errors import Rejected as Rejected
    from bnfold.graph import Reason as Reason
    from bnfold.moments import DriftReport as DriftReport
    from bnfold.outcome import FoldReport as FoldReport
    from bnfold.verify.result import Verification as Verification

_HOMES = {
    "bnfold.api": (
        "Folded",
        "Inspection",
        "Recalibrated",
        "bench",
        "check",
        "export",
        "fold",
        "inspect",
        "load",
        "recalibrate",
        "save",
    ),
    "bnfold.benchmark": ("Benchmark",),
    "bnfold.errors": ("BnfoldError", "MissingDependency", "NoVerdict", "NotEquivalent", "Rejected"),
    "bnfold.graph": ("Reason",),
    "bnfold.moments": ("DriftReport",),
    "bnfold.outcome": ("FoldReport",),
    "bnfold.verify.result": ("Verification",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

"""Equivalence in a test: `assert_equivalent(original, folded, inputs=(example,))`.

pytest finds the fixture of the same name by itself once bnfold is installed. What it raises is a failed assertion; its
message is the sentence of the verdict and the table under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any, Literal

from bnfold.api import check
from bnfold.errors import NotEquivalent, NoVerdict
from bnfold.reports import console
from bnfold.reports.report import Report
from bnfold.run import Run
from bnfold.verify.result import Verdict, Verification


class Different(NotEquivalent, AssertionError):
    """The two models are not equivalent."""


class NotCompared(NoVerdict, AssertionError):
    """Nothing could be compared, which is no success."""


def assert_equivalent(
    original: Any,
    folded: Any,
    *,
    inputs: Sequence[Any] | None = None,
    level: Literal["auto", "static", "full"] = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    min_top1: float | None = None,
    seed: int = 0,
) -> Verification:
    """Compare two models as `bnfold.check` does; return the verification. `inputs` are its `example_inputs`, and the
    other arguments are its own.

    Raises `Different`, whose message names the layer, the place and the figure, or `NotCompared` if there is no
    verdict. Both are `AssertionError`s, and the `BnfoldError`s that the command line ends with.
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    verification = check(original, folded, inputs, level=level, rtol=rtol, atol=atol, min_top1=min_top1, seed=seed)
    if verification.passed:
        return verification
    kind = Different if verification.verdict is Verdict.FAILED else NotCompared
    raise kind(console.render(Report(Run("check", check=verification), (), "", 0.0), StringIO()).rstrip())

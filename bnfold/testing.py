"""Equivalence in a test: `assert_equivalent(original, folded, inputs=(example,))`.

pytest finds the fixture of the same name by itself once bnfold is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnfold.api import check
from bnfold.verification import enforce
from bnfold.verify.result import Verification


def assert_equivalent(
    original: Any, folded: Any, *, inputs: Sequence[Any] | None = None, seed: int = 0
) -> Verification:
    """Compare two models as `bnfold.check` does; return the verification.

    Raises `NotEquivalent`, whose sentence names the layer, output and figure, or `NoVerdict` if nothing was compared.
    """
    verification = check(original, folded, inputs, seed=seed)
    enforce(verification)
    return verification

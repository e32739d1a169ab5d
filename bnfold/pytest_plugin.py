"""The pytest fixture `assert_equivalent`; bnfold itself is imported when a test asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_equivalent() -> Callable[..., Any]:
    """`bnfold.testing.assert_equivalent`."""
    from bnfold.testing import assert_equivalent as function

    return function

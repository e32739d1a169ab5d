"""Large new tensors lie in a file that nobody else sees: memory that the system may drop, not memory it must keep."""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import EnvironmentFailure

LARGE = 1 << 26
"""Bytes from which a tensor is spilled."""


def raw(array: NDArray[Any]) -> memoryview:
    """The bytes of an array of any type, not copied if they lie together."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def spilled(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, read-only and mapped from a temporary file if they are many.

    Raises `EnvironmentFailure` (`not-writable`) if the disk is full.
    """
    if array.nbytes < LARGE:
        return array
    try:
        with TemporaryFile() as file:
            file.write(raw(array))
            file.flush()
            return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)
    except OSError as error:
        message = f"a temporary file of {array.nbytes:,} bytes cannot be written: {error.strerror}"
        raise EnvironmentFailure(message, code="not-writable", hint="set TMPDIR to a larger disk") from error

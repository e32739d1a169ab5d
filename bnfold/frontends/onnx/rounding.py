"""From float64 to the type of the operator that receives the number: rounded once, to nearest, ties to even."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.algebra import Array


def rounded(array: Array, dtype: ir.DataType) -> NDArray[Any]:
    """The nearest numbers of `dtype` (FLOAT16, BFLOAT16, FLOAT or DOUBLE); infinite where one is too large."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype == ir.DataType.BFLOAT16:
            return _odd_float32(array).astype(ml_dtypes.bfloat16)
        return array.astype(dtype.numpy())


def is_finite(array: NDArray[Any]) -> bool:
    """Whether no number is NaN or infinite, in any float type."""
    wide = array if array.dtype in (np.float16, np.float32, np.float64) else array.astype(np.float32)
    return bool(np.isfinite(wide).all())


def _odd_float32(array: Array) -> NDArray[np.float32]:
    """Rounded to float32 towards zero, with the last bit set where that lost something.

    `astype(bfloat16)` goes through float32 and so rounds twice, which is wrong just above a tie. Rounding to odd first
    keeps what the second rounding must know (Boldo and Melquiond, 2008).
    """
    near = array.astype(np.float32)
    toward_zero = np.where(np.abs(near) > np.abs(array), np.nextafter(near, np.float32(0)), near)
    bits = toward_zero.view(np.uint32)
    odd: NDArray[np.float32] = (bits | (toward_zero != array)).astype(np.uint32).view(np.float32)
    return odd

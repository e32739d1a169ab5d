"""From float64 to the dtype of a parameter, rounded once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def rounded(numbers: NDArray[np.float64] | np.float64, dtype: torch.dtype) -> torch.Tensor:
    """The nearest tensor of `dtype` (ties to even), contiguous, on the CPU; beyond its range, infinity.

    torch converts float64 to half precision by way of float32, which rounds twice. Rounding to float32 towards the odd
    neighbour keeps what the second rounding needs to know.
    """
    array = np.ascontiguousarray(numbers, dtype=np.float64)
    with np.errstate(over="ignore"):
        if dtype in (torch.float16, torch.bfloat16):
            return torch.from_numpy(_to_odd(array)).to(dtype)
        return torch.from_numpy(array).to(dtype)


def _to_odd(array: NDArray[np.float64]) -> NDArray[np.float32]:
    nearest = array.astype(np.float32)
    beyond = np.abs(nearest.astype(np.float64)) > np.abs(array)
    truncated = np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)
    inexact = truncated.astype(np.float64) != array
    odd: NDArray[np.float32] = (truncated.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32)
    return odd

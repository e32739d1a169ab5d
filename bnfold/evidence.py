"""What a model stores, as it stores it: the raw material from which the certificate derives every new weight again.

Front ends fill these records from the model as read, on another path than the one that folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Tensor = NDArray[Any]


@dataclass(frozen=True)
class StoredNorm:
    """The statistics of one batch norm, each of shape `(channels,)` in its stored dtype."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float


@dataclass(frozen=True)
class StoredLinear:
    """The parameters of one linear operator in its stored layout and dtype.

    `conv`: weight `(out, in / groups, *kernel)`. `conv_transpose`: `(in, out / groups, *kernel)`.
    `matmul`: `(in, out)`. `linear`: `(out, in)`. `alpha` and `beta` scale weight and bias when the operator runs
    (Gemm); `bias` broadcasts to `(out,)`, None where there is none.
    """

    layout: Literal["conv", "conv_transpose", "matmul", "linear"]
    weight: Tensor
    bias: Tensor | None
    groups: int = 1
    alpha: float = 1.0
    beta: float = 1.0


@dataclass(frozen=True)
class Evidence:
    """Everything stored, by the name of the node that reads it."""

    norms: dict[str, StoredNorm]
    linears: dict[str, StoredLinear]

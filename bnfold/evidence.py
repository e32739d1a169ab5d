"""What a model stores, as it stores it: the raw material from which the certificate derives every new weight again.

Front ends fill these records from the model as read, on another path than the one that folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

Tensor = NDArray[Any]
Elementwise = Literal["add", "sub", "rsub", "mul", "div", "neg"]


REACH = 8
"""How many operators a front end looks back for a dropout: a layer, its bias and activation, and some reshapes."""


@dataclass(frozen=True)
class StoredNorm:
    """The statistics of one batch norm, each of shape `(channels,)` in its stored dtype.

    `kept` is the part of the running statistics that a training step would keep, None where that is not stored, and
    `batches` how many steps there were, None where nobody has counted.
    `dropout` is the probability of a dropout in front of it, one of the last `REACH` operators, all behind which pass
    its noise on; 0 without one. `unmixed` says that they only reshape, or scale a number by what depends on its sign
    alone. `rectified` says that only ReLUs read the result. `reads` is the node whose result it
    reads, empty where there is none.
    """

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float
    kept: float | None = None
    batches: int | None = None
    dropout: float = 0.0
    unmixed: bool = False
    rectified: bool = False
    reads: str = ""


AROUND = ("kept", "batches", "dropout", "unmixed", "rectified", "reads")
"""What of a `StoredNorm` is not the map that it is, but how it was trained and what is around it."""


@dataclass(frozen=True)
class StoredAffine:
    """An elementwise operator with one constant operand, in its stored shape and dtype; None where it has none.

    `add`, `sub`, `mul` and `div` have the constant second, or do not care; `rsub` subtracts from it.
    """

    op: Elementwise
    constant: Tensor | None


@dataclass(frozen=True)
class StoredWindow:
    """The attributes of a convolution, one entry per spatial axis each; `before` and `after` count padding, `extra`
    is what a transposed one adds to its output, or the size of that."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extra: tuple[int, ...] = ()


@dataclass(frozen=True)
class StoredLinear:
    """The parameters of one linear operator in its stored layout and dtype.

    `conv`: weight `(out, in / groups, *kernel)`. `conv_transpose`: `(in, out / groups, *kernel)`.
    `matmul`: `(in, out)`. `linear`: `(out, in)`. `alpha` and `beta` scale weight and bias when the operator runs
    (Gemm); `bias` broadcasts to `(out,)`, None where there is none. `added` is the elementwise operator that adds it,
    where that one may have been taken for an affine of its own. `window` is that of a convolution, None where its
    attributes do not tell.
    """

    layout: Literal["conv", "conv_transpose", "matmul", "linear"]
    weight: Tensor
    bias: Tensor | None
    groups: int = 1
    alpha: float = 1.0
    beta: float = 1.0
    added: str | None = None
    window: StoredWindow | None = None


@dataclass(frozen=True)
class StoredOperands:
    """The constants that any other operator reads, by the number of the input."""

    op: str
    operands: dict[int, Tensor]


@dataclass(frozen=True)
class Evidence:
    """Everything stored, by the name of the node that reads it; `unread` are the nodes whose values reach no result.

    `running` says of batch norms that are not in `norms` whether they have running statistics, where a model tells.
    """

    norms: dict[str, StoredNorm]
    linears: dict[str, StoredLinear]
    affines: dict[str, StoredAffine] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    others: dict[str, StoredOperands] = field(default_factory=dict)
    running: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Wire:
    """The output of this number of a node; with `given`, the input of this number of the model (`node` is empty), or of
    the body or function of that name."""

    node: str
    port: int = 0
    given: bool = False


@dataclass(frozen=True, eq=False)
class Held:
    """A stored tensor under its name; `numbers` lie where they are stored."""

    name: str
    numbers: Tensor


Read = Wire | Held | None


@dataclass(frozen=True)
class Move:
    """How an operator puts the same numbers in another order: its axes permuted, or (`order` None) another shape given
    to them. A size that is not known is None."""

    order: tuple[int, ...] | None = None
    before: tuple[int | str | None, ...] = ()
    after: tuple[int | str | None, ...] = ()


@dataclass(frozen=True)
class Operation:
    """One node as it stands: what it does, every attribute as text, and what it reads by the name or number of the
    input. `data` is the only input that does not follow from stored tensors, where there is one such. `adds` says that
    it is the sum or difference of all that it reads, `copies` that it gives out what it reads. `implied` are the
    attributes that the format has where none is given."""

    op: str
    attributes: Mapping[str, str]
    reads: Mapping[str, Read]
    outputs: int = 1
    data: str | None = None
    move: Move | None = None
    adds: bool = False
    copies: bool = False
    implied: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Contents:
    """A whole model as it stands, by the names of its nodes, so that nothing can change unseen.

    Nodes that only hold a tensor or do nothing (Identity) are not listed: who reads them reads what is behind them. The
    latter are named in `idle`.
    `results` are what the model and every body and function in it give out; `defaults` are stored tensors that a caller
    may override, and those that a program writes, by name.
    """

    operations: Mapping[str, Operation]
    results: Mapping[str, tuple[Read, ...]]
    defaults: Mapping[str, Tensor] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()

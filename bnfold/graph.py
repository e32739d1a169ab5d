"""All that a rule may know of a graph.

A front end shows its graph through the `Graph` protocol. It speaks of values and ports, so one set of rules serves
every dialect. Reading is total: whatever a node is, `read` answers with an operator or with the `Reason` it is none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

import numpy as np

from bnfold.algebra import Array, ChannelAffine, LinearOp
from bnfold.display import placed

N = TypeVar("N", bound=Hashable)
V = TypeVar("V", bound=Hashable)


NO_STATISTICS = "it stores no running statistics (track_running_stats=False), so eval() changes nothing"
"""Why a batch norm normalises by the statistics of the batch, where it is known to have no others."""

EVALUATE, TRACK = "call model.eval() before exporting", "train it with track_running_stats=True"
"""What to do about a batch norm that is in train mode, and about one that stores no running statistics."""


class Reason(Enum):
    """Why something cannot fold: a stable code, the sentence the user reads, and what the user could do about it."""

    BATCH_STATISTICS = (
        "batch-statistics",
        "it normalises by the statistics of the batch, so it is no fixed affine map",
        f"{EVALUATE}; if it stores no running statistics (track_running_stats=False), eval() changes nothing: {TRACK}",
    )
    HOOKED = (
        "hooked",
        "a hook or parametrisation runs code around it",
        "remove the hook, or make the parametrisation permanent, before folding",
    )
    SHARED_OUTPUT = (
        "shared-output",
        "another operator also reads the value that would change",
        "duplicate the operator for the other reader, or leave this one",
    )
    NOT_LINEAR = (
        "not-linear",
        "it is not a linear operator with constant weights",
        "nothing to do without changing the network",
    )
    NO_LINEAR_PRODUCER = (
        "no-linear-producer",
        "its input does not come straight from a linear operator",
        "move the batch norm directly behind a convolution or linear layer, and retrain",
    )
    READ_BY_NONLINEARITY = (
        "read-by-nonlinearity",
        "its output goes to an operator that is not linear",
        "nothing to do without changing the network: a pre-activation batch norm stays",
    )
    PADDED_BORDER = (
        "padded-border",
        "its shift cannot cross the padding of the next convolution, whose border outputs see only part of the kernel",
        "pad before the batch norm, or use an unpadded convolution",
    )
    AXIS_UNKNOWN = (
        "axis-unknown",
        "the rank of a value is not known, so the channel axis cannot be proved",
        "export the model with known input ranks",
    )
    AXIS_DIFFERS = (
        "axis-differs",
        "it normalises another axis than the one on which the linear operator has its channels",
        "transpose so that the channel axis is the same, or leave it",
    )
    NOT_PER_CHANNEL = (
        "not-per-channel",
        "a constant is not one number per channel",
        "nothing to do without changing the network",
    )
    PARAMETER_NOT_CONSTANT = (
        "parameter-not-constant",
        "a weight or statistic is computed at run time",
        "store the parameter as an initializer; a weight that is a model input can be overridden at run time",
    )
    TRAINED = (
        "trained",
        "the file holds a graph for training, which changes a weight or statistic",
        "fold a copy of the model without its training_info, if it is for inference only",
    )
    VARIANCE_NOT_POSITIVE = (
        "variance-not-positive",
        "variance + epsilon is not positive in some channel, so the batch norm itself gives NaN or infinity",
        "look at the running variance of this layer: the checkpoint is damaged or was never trained",
    )
    NON_FINITE = (
        "non-finite",
        "a statistic is NaN or infinite",
        "look at this layer's statistics: the checkpoint is damaged",
    )
    OVERFLOW = (
        "overflow",
        "a folded weight or bias would be too large for the operator's number type",
        "use a type of larger range: bnfold export writes float32 unless --dtype keep, and bfloat16 reaches as far",
    )
    QUANTISED = (
        "quantised",
        "the value passes a quantised operator",
        "fold before quantising",
    )
    GROWTH_BUDGET = (
        "growth-budget",
        "a shared weight would have to be copied beyond the allowed file growth",
        "raise --max-growth",
    )
    EXCLUDED = (
        "excluded",
        "it was excluded by --include or --exclude",
        "change the patterns",
    )
    UNKNOWN_OPERATOR = (
        "unknown-operator",
        "the neighbouring operator is not one that bnfold knows",
        "nothing to do, unless the operator can be expressed in standard operators",
    )
    UNSUPPORTED_ATTRIBUTE = (
        "unsupported-attribute",
        "an operator has an attribute or input that bnfold does not read",
        "report it: the operator may be foldable",
    )
    OLD_OPSET = (
        "old-opset",
        "its operator set is older than 7, where batch normalisation meant something else",
        "convert the model to a newer opset first",
    )
    CAPTURED_BY_SUBGRAPH = (
        "captured-by-subgraph",
        "a subgraph (If, Loop, Scan) reads the value that would change",
        "nothing to do without changing the network",
    )
    IS_GRAPH_OUTPUT = (
        "is-graph-output",
        "the value that would change is an output of the model",
        "drop that output from the model if nobody needs it",
    )
    MUTATED_IN_PLACE = (
        "mutated-in-place",
        "the value is written in place, or shares memory with one that is",
        "use the out-of-place operator",
    )
    EXTRA_OUTPUTS = (
        "extra-outputs",
        "its running statistics or saved statistics are outputs that the model uses",
        "drop these outputs: they belong to training",
    )
    CHANNELS_MIXED = (
        "channels-mixed",
        "an operator on the way mixes or regroups the channels",
        "nothing to do without changing the network",
    )
    JOINED = (
        "joined",
        "its output is added to, or put beside, a value that does not take the same scale",
        "move the batch norm behind the join, or give every branch the same one, and retrain",
    )
    GATED = (
        "gated",
        "its shift cannot cross a product of two values that are computed at run time",
        "move the batch norm in front of the gate, and retrain",
    )
    MIXED_SIGN_MAXPOOL = (
        "mixed-sign-maxpool",
        "a scale that is not positive would turn the maximum of a pool into a minimum",
        "retrain with the batch norm in front of the pool, or with gamma kept positive",
    )
    TOO_FAR = (
        "too-far",
        "no linear operator is found within 200 operators",
        "remove needless operators from the model first",
    )
    NO_GAIN = (
        "no-gain",
        "the operators that would take it in need as many new nodes for a bias as would vanish",
        "give these operators a bias, or leave it",
    )
    WINDOWS_DIFFER = (
        "windows-differ",
        "the branches differ in stride, output size or padding, or the size decides what their taps see",
        "nothing to do without changing the network",
    )
    MORE_WORK = (
        "more-work",
        "one operator in the place of both would need more multiply-adds",
        "nothing to do: merging would make the model slower",
    )
    NOT_READ = (
        "not-read",
        "nothing reads its output",
        "remove it from the model",
    )

    def __init__(self, code: str, message: str, remedy: str) -> None:
        self.code = code
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True)
class Refusal:
    """ "No" is an answer: why, and which node stands in the way (None: the affine itself, or no node).

    `also` are the nodes that would have to go too; those in `readers` are in the way only because they read a value
    that would change. `node` is the blocker as its graph knows it. `growth` is the `max_growth` with which no
    copy would be refused, rounded up. `modules` has the module of each of these nodes that has one.
    """

    reason: Reason
    blocker: str | None = None
    node: object = field(default=None, compare=False, repr=False)
    also: tuple[str, ...] = ()
    readers: tuple[str, ...] = field(default=(), compare=False)
    growth: float | None = field(default=None, compare=False)
    modules: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def obstacles(self) -> tuple[str, ...]:
        """The nodes in the way in the user's words: their modules, with their names."""
        names = (self.blocker, *self.also) if self.blocker is not None else ()
        return tuple(placed(name, self.modules.get(name)) for name in names)

    @property
    def remedy(self) -> str:
        """What to do, with the number that it takes."""
        return self.reason.remedy if self.growth is None else f"{self.reason.remedy} to {self.growth:.2f}"


@dataclass(frozen=True)
class Site:
    """Where a node is, in the user's words. `name` is unique in its graph."""

    name: str
    op: str
    module: str | None = None
    source: tuple[str, int] | None = None


Affines = tuple[ChannelAffine | None, ...]
"""One affine per port; None is the identity."""


@dataclass(frozen=True)
class Asked:
    """What the inputs must become: all of `every`, and one of `either`, each a port and its affine, if any."""

    every: Affines
    either: tuple[tuple[int, ChannelAffine], ...] = ()


class Passage(Protocol):
    """An operator without weights, as an affine sees it. Ports count the values that it maps, and those it makes."""

    def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:
        """What must happen to the inputs for output `port` to become `affine(output)`."""

    def downstream(self, affines: Affines) -> Affines | Reason:
        """What must be done to each output once each of these affines is taken off its input."""


Reading = LinearOp | ChannelAffine | Passage | Reason


def batch_norm(gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> ChannelAffine | Reason:
    """The affine map of a batch norm with these statistics along axis 1, or what is wrong with them.

    The arrays are float64 and should have the same shape `(channels,)`.
    """
    statistics = (gamma, beta, mean, variance)
    if any(array.ndim != 1 or array.shape != mean.shape for array in statistics):
        return Reason.NOT_PER_CHANNEL
    if not all(np.isfinite(array).all() for array in statistics):
        return Reason.NON_FINITE
    if not (variance + epsilon > 0).all():
        return Reason.VARIANCE_NOT_POSITIVE
    return ChannelAffine.normalisation(gamma, beta, mean, variance, epsilon, axis=1)


Use = tuple[N, int | None]


@dataclass(frozen=True)
class SharedWeight:
    """A weight that several nodes read: an identity, its bytes, and how many nodes read it."""

    key: Hashable
    nbytes: int
    readers: int


@dataclass(frozen=True)
class Extent:
    """The size of a value in numbers and in bytes."""

    numbers: int
    nbytes: int


class View(Protocol[N, V]):
    """A graph as rules see it. A node that is no affine, linear operator or passage is opaque, never an error."""

    def affines(self) -> Sequence[N]:
        """Every batch norm and every other affine of the model, foldable or not, in topological order.

        An affine that is no batch norm is an elementwise operator with one constant operand: Add, Sub, Mul, Div, Neg.
        """

    def is_norm(self, node: N) -> bool:
        """Whether an affine is a batch norm."""

    def position(self, node: N) -> int:
        """Where the node stands in a topological order of its graph."""

    def inputs(self, node: N) -> Sequence[V]:
        """The values that a passage maps, by port; all values that any other node reads as a tensor."""

    def outputs(self, node: N) -> Sequence[V]:
        """The values that a node makes, by port; of an affine or a linear operator, its result."""

    def site(self, node: N) -> Site:
        """Where the node is, in the user's words."""

    def data(self, node: N) -> V:
        """The value that an affine or linear operator maps (not its parameters)."""

    def result(self, node: N) -> V:
        """The mapped value."""

    def producer(self, value: V) -> N | None:
        """The node that makes the value; None for an input of the model."""

    def uses(self, value: V) -> Sequence[Use[N] | Reason]:
        """Who reads the value's contents: `(node, port)`; port None where it is not the node's data (a weight, say).

        A reader that is no node (an output of the model, a subgraph, a view that is written in place) is given as the
        `Reason` for which the value must keep its contents. Who reads only the shape is not listed.
        """

    def read(self, node: N) -> Reading:
        """What the node is, or the reason it is nothing that an affine can enter or cross (`NOT_LINEAR` mostly)."""

    def fits(self, node: N, op: LinearOp) -> Reason | None:
        """What `write` could not hold, said before deciding."""

    def inserts(self, node: N, op: LinearOp) -> bool:
        """Whether `write` would need a new node for this operator: the bias of a matrix product that has none."""

    def shared(self, node: N) -> SharedWeight | None:
        """The weight of a linear operator, if other nodes read it too."""

    def parameter_bytes(self) -> int:
        """The bytes of all stored tensors; what `max_growth` is measured against."""

    def extent(self, value: V) -> Extent | None:
        """How large a value is at batch 1; None where a size is not known."""

    def joins(self) -> Sequence[N]:
        """Every addition and every linear operator, in topological order: what might be merged."""

    def movers(self) -> Sequence[N]:
        """Every operator that may be a reshape or a permutation, in topological order: what might undo another."""

    def lowers(self, node: N, affine: ChannelAffine) -> bool:
        """Whether `lower` could write this affine: the rank of the data is known, and its type holds the numbers."""


class Graph(View[N, V], Protocol[N, V]):
    """A graph that can be changed. Only `Plan.commit` calls these, once per node."""

    def write(self, node: N, op: LinearOp) -> None:
        """Give the node the parameters of `op`, rounded once; a parameter that other nodes read is copied."""

    def bypass(self, node: N) -> None:
        """Let every reader of the node's result read its data instead, and remove the node: an affine, an operator that
        does nothing, or a linear operator that another one has taken in."""

    def undo(self, first: N, last: N) -> None:
        """Let every reader of the last one's result read what the first one reads, and remove both, and what is between
        them; what somebody asks for its shape stays."""

    def drop(self, node: N, ports: tuple[int, ...]) -> None:
        """Remove these terms of a sum, and what only they have read; a sum with one term left vanishes."""

    def lower(self, node: N, affine: ChannelAffine) -> tuple[str, ...]:
        """Put a product, a sum, or both in the place of a batch norm, rounded once; the names of the new nodes."""

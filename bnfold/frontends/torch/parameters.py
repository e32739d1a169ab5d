"""Where a linear operator of a graph keeps its numbers, and the `LinearOp` that they make."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from bnfold.algebra import LinearOp, Parameters
from bnfold.frontends.torch.calls import Call
from bnfold.frontends.torch.constants import Constant, Constants
from bnfold.frontends.torch.lenses import WEIGHT_NAMES, Form, channels_of, form_of, taps_of
from bnfold.graph import Reason


@dataclass(frozen=True, eq=False)
class Held:
    """The constants that a linear operator reads, and how it spells them."""

    form: Form
    weight: Constant
    bias: Constant | None

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Of the weight and of the bias, be it a new one."""
        return self.weight.dtype, (self.bias or self.weight).dtype


def held_by(call: Call, constants: Constants) -> Held | Reason:
    """What a linear operator holds, or why it is none."""
    weight = constants.find(call.get(WEIGHT_NAMES[call.operator]))
    if isinstance(weight, Reason):
        return Reason.NOT_LINEAR if is_computed_product(call) else weight
    form = form_of(call, weight.shape)
    if isinstance(form, Reason):
        return form
    argument = None if form.bias is None else call.get(form.bias)
    bias = None if argument is None else constants.find(argument)
    return bias if isinstance(bias, Reason) else Held(form, weight, bias)


def linear_op(held: Held, rank: int | None) -> LinearOp | Reason:
    """The operator on data of this rank; its thunk captures the tensors."""
    form, weight, bias = held.form, held.weight, held.bias
    if rank is None or rank <= form.spatial:
        return Reason.AXIS_UNKNOWN
    axis = rank - form.spatial - 1
    in_channels, out_channels = channels_of(form, weight.shape)
    if bias is not None and bias.shape not in ((out_channels,), (1, out_channels), (1,), (1, 1), ()):
        return Reason.NOT_PER_CHANNEL

    def stored() -> Parameters:
        taps = taps_of(form, weight.array()) * form.alpha
        offset = np.zeros(out_channels) if bias is None else bias.array().reshape(-1) * form.beta
        return Parameters(taps, np.broadcast_to(offset, (out_channels,)))

    source = (weight.key, weight.transposed, None if bias is None else bias.key, form)
    return LinearOp(
        in_channels, out_channels, form.groups, axis, axis, form.bordered, source, stored, window=form.window
    )


def weight_readers(calls: Iterable[Call], constants: Constants) -> dict[Hashable, int]:
    """How many linear operators read each stored weight."""
    readers: dict[Hashable, int] = {}
    for call in calls:
        weight = constants.find(call.get(WEIGHT_NAMES[call.operator])) if call.operator in WEIGHT_NAMES else None
        if isinstance(weight, Constant):
            readers[weight.key] = readers.get(weight.key, 0) + 1
    return readers


def is_computed_product(call: Call) -> bool:
    """A product of two run-time values is no linear operator; a convolution with a run-time weight wants to be one."""
    return call.operator in ("mm", "matmul", "addmm")

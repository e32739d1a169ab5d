"""What is asked of whoever writes to a torch graph: the part in which a program and a module differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx

from bnfold.frontends.torch.biases import Added
from bnfold.frontends.torch.constants import Constant
from bnfold.frontends.torch.lenses import Form
from bnfold.window import Window


@dataclass(frozen=True, eq=False)
class NewParameters:
    """What a linear operator shall hold: tensors in the layout of its arguments; no bias where it needs none.

    `added` is where the bias is, if the operator has no argument for it and another one adds it. `window` and `groups`
    are those of a convolution that was merged, None where they stay.
    """

    form: Form
    old_weight: Constant
    old_bias: Constant | None
    weight: torch.Tensor
    bias: torch.Tensor | None
    added: Added | None
    window: Window | None = None
    groups: int = 1


class Writer(Protocol):
    """Where the new parameters of one operator go; what differs between a program and a module."""

    def write(self, node: fx.Node, parameters: NewParameters) -> None:
        """Take note of the new parameters of a linear operator."""

    def bypass(self, node: fx.Node, result: fx.Node, value: fx.Node) -> None:
        """Let the readers of `result` read `value`; remove the node, and the constants that only it has read."""

    def lower(
        self, node: fx.Node, result: fx.Node, value: fx.Node, terms: Mapping[str, torch.Tensor]
    ) -> tuple[str, ...]:
        """Put `value * scale + shift` in the place of `result`, or what of it is in `terms`; remove the node as above.

        Gives the names of the new nodes.
        """

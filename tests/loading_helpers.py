"""What the tests of loading ask of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.errors import BnfoldError, Rejected
from bnfold.loading import Source, load

ARCH = Source(arch="netcode:Net")


def refused(path: Path, source: Source = Source(), error: type[BnfoldError] = Rejected) -> BnfoldError:
    """The error of loading, which must be one sentence."""
    with pytest.raises(error) as caught:
        load(path, source)
    assert "\n" not in str(caught.value)
    return caught.value


def same_weights(model: Any, net: nn.Module) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())

"""A network in a file of its own, as users have it, for the tests of loading."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)

def fails():
    raise ValueError("no such width")

constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the code of a network in `netcode.py`."""
    (tmp_path / "netcode.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("netcode", None)


@pytest.fixture
def net(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """An instance of that network with seeded weights."""
    monkeypatch.syspath_prepend(str(folder))
    import netcode  # type: ignore[import-not-found]

    torch.manual_seed(0)
    network: nn.Module = netcode.Net().eval()
    return network

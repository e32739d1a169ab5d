"""An export against the program that it came from: in float64 they are equal, with the scalars that ONNX stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from command_line import bnfold
from torch import Tensor, nn
from torch.nn import functional

from bnfold.dialects import onnx_dialect, torch_dialect
from bnfold.errors import Exit
from bnfold.frontends import torch as frontend
from bnfold.run import RunOptions
from bnfold.verification import Side
from bnfold.verify.check import check_export
from bnfold.verify.result import Layer, Status


class Network(nn.Module):
    """A convolution, a batch norm and a function of their result."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.behind = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.norm(self.conv(x)))


def exported(behind: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor] | None = None) -> Layer:
    """The layer that compares a program with its export, or with the export of another one with the same weights."""
    programs = []
    for function in (behind, other or behind):
        torch.manual_seed(0)
        programs.append(frontend.capture(Network(function).eval(), (torch.randn(2, 3, 6, 6),)))
    program, model = programs[0], frontend.to_onnx(programs[1])
    dialect = torch_dialect()
    first = replace(Side(dialect, program).subject(RunOptions()), exact=lambda: dialect.exact_as_exported(program))
    second = Side(onnx_dialect(), model).subject(RunOptions())
    return check_export(first, second, constants=dialect.rounded_constants(program))


EQUAL: dict[str, Callable[[Tensor], Tensor]] = {
    "an epsilon": functional.relu,
    "a slope by default": functional.leaky_relu,
    "a factor and a term": lambda x: x * 0.3 + 0.1,
    "a layer norm": lambda x: functional.layer_norm(x, x.shape[1:]),
}


@pytest.mark.parametrize("behind", EQUAL.values(), ids=EQUAL.keys())
def test_scalars_in_float32_are_no_difference(behind: Callable[[Tensor], Tensor]) -> None:
    layer = exported(behind)
    assert layer.status is Status.PASS, layer.because
    assert layer.limit == 1e-11
    assert layer.figure is not None
    assert layer.figure < 1e-14


def test_constants_of_the_exporter_are_allowed_and_named() -> None:
    layer = exported(functional.gelu)
    assert layer.status is Status.PASS
    assert layer.limit == 1e-6
    assert layer.because.endswith("constants of gelu are in float32")
    assert layer.figure is not None
    assert layer.figure > 1e-11


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "a factor in another last place": (lambda x: x * 0.3, lambda x: x * (0.3 + 1e-7)),
    "another slope": (functional.leaky_relu, lambda x: functional.leaky_relu(x, 0.01000001)),
    "another approximation": (functional.gelu, lambda x: functional.gelu(x, approximate="tanh")),
}


@pytest.mark.parametrize(("behind", "other"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_export_fails(behind: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> None:
    assert exported(behind, other).status is Status.FAIL


def test_the_program_itself_keeps_its_scalars() -> None:
    program = frontend.capture(Network(functional.leaky_relu).eval(), (torch.randn(2, 3, 6, 6),))
    before = [(node.args, node.kwargs) for node in program.graph.nodes]
    frontend.as_exported(program)
    assert [(node.args, node.kwargs) for node in program.graph.nodes] == before


def _bfloat16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """The command that exports a linear network whose weights are stored in bfloat16."""
    (folder / "linear_net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))\n"
    )
    monkeypatch.chdir(folder)
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16().state_dict(), folder / "net.pt")
    return ["export", "net.pt", "--arch", "linear_net:net", "-q"]


def test_an_axis_that_is_of_one_size_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives such an axis a symbol whose value is a number; it must get neither a name nor lend it to others."""
    code = "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def forward(self, x):\n"
    code += "        assert x.shape[2] == 32\n        return super().forward(x)\n\n\ndef net():\n"
    code += "    return Net(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32))\n"
    (tmp_path / "square_net.py").write_text(code)
    torch.save(nn.Sequential(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32)).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    ran = bnfold("export", "net.pt", "--arch", "square_net:net", "-i", "batch,3,height,width")
    assert (ran.returncode, ran.stderr) == (Exit.OK, "")
    assert "note: height of x is fixed to 32: the network takes no other size" in ran.stdout
    graph = onnx.load(tmp_path / "net.onnx").graph
    shapes = [
        [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in (*graph.input, *graph.output)
    ]
    assert shapes == [["batch", 3, 32, "width"], ["batch", 32, 32, "width"]]


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (("-i", "2,3:float32", "--dtype", "keep"), Exit.REJECTED, "its types do not go together"),
        (("-i", "2,3:bfloat16"), Exit.USAGE, "the export is in float32"),
        (("-i", "2,3:bfloat16", "--dtype", "keep"), Exit.OK, ""),
        (("-i", "2,3"), Exit.OK, ""),
    ],
)
def test_an_input_of_another_type_than_the_weights(
    flags: tuple[str, ...], code: Exit, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = bnfold(*_bfloat16(tmp_path, monkeypatch), *flags)
    assert (ran.returncode, (tmp_path / "net.onnx").exists()) == (code, code is Exit.OK), ran.stderr
    assert sentence in ran.stderr

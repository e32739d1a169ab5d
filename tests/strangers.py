"""Files as strangers send them: one of each habit, and what the plain command says of each.

    python tests/strangers.py OUTDIR           build the files, and print the table of commands
    python tests/strangers.py OUTDIR --run     run each; where a flag is missing, run the printed command as printed

OUTDIR should be fresh: no command replaces a file that it did not name. TorchScript comes twice, traced alone, and
traced and frozen. Every network is in `strangers_nets.py`, which is written into OUTDIR too: the code that a stranger's
weights belong to.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

NETS = '''"""Small networks, one per habit."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Classifier(nn.Module):
    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.stem = Block(3, width)
        self.body = Block(width, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(x)
        return self.head(x.mean((2, 3)))


class Tagger(nn.Module):
    """int64 tokens in, one tag each out."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens):
        x = self.bn(self.conv(self.embedding(tokens).transpose(1, 2)))
        return self.head(x.transpose(1, 2))


class Siamese(nn.Module):
    """Two images through one network."""

    def __init__(self):
        super().__init__()
        self.stem = Block(3, 8)
        self.body = Block(8, 8)

    def embed(self, x):
        return self.body(self.stem(x)).mean((2, 3))

    def forward(self, left, right):
        return (self.embed(left) - self.embed(right)).abs().sum(1)
'''

IMAGE = (2, 3, 16, 16)
ADAPTIVE = torch.export.Dim.AUTO


@dataclass(frozen=True)
class Stranger:
    """A file, what is odd about it, and the command that its owner would try first."""

    name: str
    habit: str
    build: Callable[[Path], None]
    verb: str = "fold"

    def command(self, folder: Path) -> list[str]:
        return ["bnfold", self.verb, str(folder / self.name)]


def nets() -> Any:
    import strangers_nets  # type: ignore[import-not-found]

    return strangers_nets


def trained(network: nn.Module) -> nn.Module:
    """Seeded weights, and statistics as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif "bn" in name and tensor.is_floating_point():
                tensor.normal_(1 if name.endswith("weight") else 0, 0.3, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3, generator=generator)
    return network.eval()


def classifier() -> nn.Module:
    return trained(nets().Classifier())


# --- torch ------------------------------------------------------------------------------------------------------------


def timm_checkpoint(path: Path) -> None:
    state = classifier().state_dict()
    arguments = argparse.Namespace(model="classifier", lr=0.1, output=Path("output"), img_size=16, opt="sgd")
    content = {"epoch": 9, "arch": "classifier", "args": arguments, "version": 2, "metric": np.float64(0.93)}
    content["state_dict"] = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    content["state_dict_ema"] = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(content, path)


def half_module(path: Path) -> None:
    torch.save({"epoch": -1, "ema": None, "model": classifier().half(), "train_args": {"imgsz": 16}}, path)


def state_dict(path: Path) -> None:
    torch.save(classifier().state_dict(), path)


def safetensors(path: Path) -> None:
    save_file(classifier().state_dict(), path)


def traced(path: Path) -> None:
    script(path, lambda network: network)


def frozen(path: Path) -> None:
    script(path, lambda network: torch.jit.freeze(network, optimize_numerics=False))


def script(path: Path, prepare: Callable[[Any], Any]) -> None:
    trace: Callable[..., Any] = torch.jit.trace
    prepare(trace(classifier(), torch.ones(IMAGE))).save(path)


def program(path: Path) -> None:
    sizes = {"x": {0: ADAPTIVE}}
    with path.open("wb") as file:
        torch.export.save(torch.export.export(classifier(), (torch.ones(IMAGE),), dynamic_shapes=sizes), file)


# --- ONNX from torch --------------------------------------------------------------------------------------------------


def export(network: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, **options: Any) -> None:
    """Today's exporter, with the batch norms left in."""
    torch.onnx.export(network, inputs, path, dynamo=True, optimize=False, external_data=False, verbose=False, **options)


def new_exporter(path: Path) -> None:
    export(classifier(), (torch.ones(IMAGE),), path)


def old_exporter(path: Path) -> None:
    mode = torch.onnx.TrainingMode.PRESERVE
    inputs = (torch.ones(IMAGE),)
    torch.onnx.export(classifier(), inputs, path, dynamo=False, training=mode, do_constant_folding=False)


def dynamic_sizes(path: Path) -> None:
    sizes = {"x": {0: ADAPTIVE, 2: ADAPTIVE, 3: ADAPTIVE}}
    export(classifier(), (torch.ones(IMAGE),), path, dynamic_shapes=sizes)


def tokens(path: Path) -> None:
    export(trained(nets().Tagger()), (torch.ones(2, 12, dtype=torch.int64),), path)


def float16(path: Path) -> None:
    export(classifier().half(), (torch.ones(IMAGE).half(),), path)


def bfloat16(path: Path) -> None:
    export(classifier().bfloat16(), (torch.ones(IMAGE).bfloat16(),), path)


def siamese(path: Path) -> None:
    export(trained(nets().Siamese()), (torch.ones(IMAGE), torch.zeros(IMAGE)), path)


# --- ONNX by hand -----------------------------------------------------------------------------------------------------


def tensor(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> TensorProto:
    values = np.random.default_rng(sum(name.encode())).uniform(low, high, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def batch_norm(source: str, target: str, channels: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    names = [f"{target}_{word}" for word in ("scale", "shift", "mean", "var")]
    stored = [tensor(name, channels, low=0.5, high=1.5) for name in names]
    return [helper.make_node("BatchNormalization", [source, *names], [target], name=f"{target}_bn")], stored


def conv_bn() -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """x (1, 3, 8, 8) to h (1, 5, 8, 8)."""
    conv = helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1], name="conv")
    nodes, stored = batch_norm("c", "h", 5)
    return [conv, *nodes], [tensor("weight", 5, 3, 3, 3), *stored]


def write(
    path: Path, nodes: list[onnx.NodeProto], stored: list[TensorProto], outputs: dict[str, tuple[int, list[Any]]]
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    results = [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "stranger", [x], results, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def no_detections(path: Path) -> None:
    """The score threshold is above every score, so NonMaxSuppression returns no row at all."""
    nodes, stored = conv_bn()
    stored += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in INTEGERS.items()]
    stored += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in THRESHOLDS.items()]
    nodes += [
        helper.make_node("Reshape", ["h", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["cells"], perm=[0, 2, 1]),
        helper.make_node("Split", ["cells", "parts"], ["boxes", "raw"], axis=2),
        helper.make_node("Transpose", ["raw"], ["logits"], perm=[0, 2, 1]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["kept"]),
    ]
    outputs: dict[str, tuple[int, list[Any]]] = {
        "kept": (TensorProto.INT64, ["detections", 3]),
        "scores": (TensorProto.FLOAT, [1, 1, 64]),
    }
    write(path, nodes, stored, outputs)


INTEGERS: dict[str, list[int]] = {"rows": [1, 5, 64], "parts": [4, 1], "most": [10]}
THRESHOLDS: dict[str, list[float]] = {"overlap": [0.5], "least": [2.0]}


def unknown_operator(path: Path) -> None:
    nodes, stored = conv_bn()
    nodes += [helper.make_node("TwistAndShout", ["h"], ["y"], name="twist")]
    write(path, nodes, stored, {"y": (TensorProto.FLOAT, [1, 5, 8, 8])})


def quantised(path: Path) -> None:
    """Convolution between QuantizeLinear and DequantizeLinear, as quantisers write it, and a batch norm after it."""
    weight = np.random.default_rng(0).integers(-90, 90, (5, 3, 3, 3)).astype(np.int8)
    bn, stored = batch_norm("c", "h", 5)
    scalars = {
        "ws": np.array(0.01, "f4"),
        "wz": np.array(0, "i1"),
        "xs": np.array(0.02, "f4"),
        "xz": np.array(128, "u1"),
    }
    stored += [numpy_helper.from_array(value, name) for name, value in {"w8": weight, **scalars}.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        *bn,
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    write(path, nodes, stored, {"y": (TensorProto.FLOAT, [1, 5, 8, 8])})


STRANGERS = (
    Stranger("timm_checkpoint.pth.tar", "timm's trainer: Namespace, prefix, EMA", timm_checkpoint, "export"),
    Stranger("half_module.pt", "a dict with a half-precision module", half_module, "export"),
    Stranger("state_dict.pth", "a plain state_dict", state_dict, "export"),
    Stranger("weights.safetensors", "safetensors", safetensors, "export"),
    Stranger("traced.pt", "TorchScript, traced", traced, "export"),
    Stranger("frozen.pt", "TorchScript, traced and frozen", frozen, "export"),
    Stranger("program.pt", "a .pt2 named .pt", program, "export"),
    Stranger("new_exporter.onnx", "ONNX of torch's new exporter", new_exporter),
    Stranger("old_exporter.onnx", "ONNX of torch's old exporter", old_exporter),
    Stranger("dynamic.onnx", "dynamic batch, height and width", dynamic_sizes),
    Stranger("tokens.onnx", "int64 input", tokens),
    Stranger("float16.onnx", "float16", float16),
    Stranger("bfloat16.onnx", "bfloat16", bfloat16),
    Stranger("no_detections.onnx", "NonMaxSuppression that finds nothing", no_detections),
    Stranger("unknown_operator.onnx", "an unknown operator in the default domain", unknown_operator),
    Stranger("siamese.onnx", "one network called twice", siamese),
    Stranger("quantised.onnx", "a QDQ model", quantised),
)


def build(folder: Path) -> None:
    """Write every file, and the code of the networks, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "strangers_nets.py").write_text(NETS, encoding="utf-8")
    sys.path.insert(0, str(folder.resolve()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript and the old exporter announce their end
        for stranger in STRANGERS:
            stranger.build(folder / stranger.name)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """One command as its reader would run it, in `folder`, with this interpreter's bnfold."""
    words = [sys.executable, "-P", "-m", "bnfold", *command[1:]]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)


def printed_command(text: str) -> list[str] | None:
    """The first line of a message that is a complete command."""
    lines = (line.strip().removeprefix("run: ") for line in text.splitlines())
    return next((shlex.split(line) for line in lines if line.startswith("bnfold ")), None)


def try_out(stranger: Stranger, folder: Path, *, attempts: int = 4) -> int:
    """Run the plain command, and then whatever command it prints, as printed. Returns the last exit code."""
    command: list[str] | None = ["bnfold", stranger.verb, stranger.name]
    print(f"\n== {stranger.habit}")
    code = 0
    for _ in range(attempts):
        assert command is not None
        result = run(command, folder)
        code = result.returncode
        said = (result.stderr if code else result.stdout).strip() or result.stderr.strip()
        print(f"$ {shlex.join(command)}\n[exit {code}] " + "\n  ".join(said.splitlines()[:12]))
        following = printed_command(result.stderr) if code else None
        if following is None or following == command:
            break
        command = following
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", action="store_true", help="run each command, and the commands that it prints")
    arguments = parser.parse_args()
    build(arguments.folder)
    if arguments.run:
        codes = {stranger.name: try_out(stranger, arguments.folder) for stranger in STRANGERS}
        print("\n" + "\n".join(f"{code:>3}  {name}" for name, code in codes.items()))
        return
    for stranger in STRANGERS:
        print(f"{stranger.habit:<45} {shlex.join(stranger.command(arguments.folder))}")


if __name__ == "__main__":
    main()

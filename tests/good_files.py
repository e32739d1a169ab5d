"""Good files: what every writer at hand makes of small random networks is read, and none of it is refused.

    python tests/good_files.py --count 1000

The writers take turns, and file `n` is made of the network with the seed `n`, so a seed gives the same file again.
Files that need a word of the user (the code of a network, trust, a linked folder) are given it. What is ONNX or an
exported program is inspected too: every batch norm must be accounted for. The counts are by writer; one that is not
installed is left out. A file is good unless onnxruntime does not open it either (onnxoptimizer gives names twice).
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import BnfoldError
from bnfold.loading import Source, load

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.Sigmoid, nn.Identity, nn.Dropout)
POOLS = (partial(nn.AvgPool2d, 3, 1, 1), partial(nn.MaxPool2d, 3, 1, 1))


def network(seed: int) -> nn.Sequential:
    """A few convolutions with batch norms, in eval mode, for inputs of three channels."""
    choice = random.Random(seed)
    torch.manual_seed(seed)
    channels, layers = 3, list[nn.Module]()
    for _ in range(choice.randint(1, 3)):
        width, kernel = choice.choice((2, 4, 6)), choice.choice((1, 3))
        kind = choice.choice((nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d))
        layers += [kind(channels, width, kernel, padding=kernel // 2, bias=choice.random() < 0.5)]
        layers += [nn.BatchNorm2d(width), choice.choice(ACTIVATIONS)()]
        layers += [choice.choice(POOLS)()] if choice.random() < 0.3 else []
        channels = width
    found = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2), nn.BatchNorm1d(2))
    for name, stored in found.state_dict().items():
        if "running" in name:
            stored.uniform_(0.5, 1.5)
    return found.eval()


@dataclass(frozen=True)
class Case:
    """A network, an input that it takes, and an empty folder for files of it."""

    seed: int
    folder: Path

    @property
    def network(self) -> nn.Sequential:
        return network(self.seed)

    @property
    def sample(self) -> Tensor:
        return torch.randn(2, 3, 9, 9)

    @property
    def code(self) -> Source:
        """What the user says of weights alone."""
        folder = Path(__file__).parent
        return Source(arch="good_files:network", arch_args={"seed": self.seed}, app_dir=folder)

    def exported(self, name: str = "exported.onnx") -> Path:
        """An ONNX file, by the exporter that takes no seconds, of one of many opsets."""
        path = self.folder / name
        options = {"opset_version": 11 + self.seed % 7, "training": torch.onnx.TrainingMode.PRESERVE}
        options["dynamic_axes"] = {"x": {0: "batch"}} if self.seed % 2 else None
        folding = self.seed % 3 == 0
        torch.onnx.export(
            self.network, (self.sample,), path, input_names=["x"], dynamo=False, do_constant_folding=folding, **options
        )
        return path


Writer = Callable[[Case], tuple[Path, Source] | Path]


# --- ONNX -------------------------------------------------------------------------------------------------------------


def by_dynamo(case: Case) -> Path:
    path = case.folder / "model.onnx"
    torch.onnx.export(case.network, (case.sample,), path, dynamo=True, verbose=False, external_data=bool(case.seed % 2))
    return path


def in_one_data_file(case: Case) -> Path:
    path = case.folder / "model.onnx"
    onnx.save(onnx.load(case.exported()), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def in_many_data_files(case: Case) -> Path:
    path, apart = case.folder / "model.onnx", {"all_tensors_to_one_file": False, "size_threshold": 0}
    onnx.save(onnx.load(case.exported()), path, save_as_external_data=True, **apart)
    return path


def by_onnx_ir(case: Case) -> Path:
    path = case.folder / "model.onnx"
    ir.save(ir.load(case.exported()), path, external_data="model.data" if case.seed % 2 else None)
    return path


def with_shapes(case: Case) -> Path:
    path = case.folder / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(case.exported())), path)
    return path


def converted(case: Case) -> Path:
    path = case.folder / "model.onnx"
    onnx.save(onnx.version_converter.convert_version(onnx.load(case.exported()), 18 + case.seed % 4), path)
    return path


def by_onnxsim(case: Case) -> Path:
    import onnxsim

    path = case.folder / "model.onnx"
    onnx.save(onnxsim.simplify(onnx.load(case.exported()), skip_fuse_bn=bool(case.seed % 2))[0], path)
    return path


def by_onnxslim(case: Case) -> Path:
    import onnxslim

    path = case.folder / "model.onnx"
    onnx.save(onnxslim.slim(onnx.load(case.exported())), path)
    return path


def by_onnxoptimizer(case: Case) -> Path:
    import onnxoptimizer

    path, passes = case.folder / "model.onnx", onnxoptimizer.get_available_passes()
    chosen = None if case.seed % 2 else [name for name in passes if name.startswith("eliminate")]
    onnx.save(onnxoptimizer.optimize(onnx.load(case.exported()), chosen), path)
    return path


def optimised(case: Case) -> Path:
    path, options = case.folder / "model.onnx", onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED)[case.seed % 2]
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(case.exported(), options, providers=["CPUExecutionProvider"])
    return path


def quantised_dynamically(case: Case) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    path = case.folder / "model.onnx"
    quantize_dynamic(case.exported(), path)
    return path


def quantised_statically(case: Case) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Samples(CalibrationDataReader):
        left = 2

        def get_next(self) -> dict[str, Any] | None:
            self.left -= 1
            return {"x": case.sample.numpy()} if self.left >= 0 else None

    path, forms = case.folder / "model.onnx", (QuantFormat.QDQ, QuantFormat.QOperator)
    quantize_static(case.exported(), path, Samples(), quant_format=forms[case.seed % 2], per_channel=case.seed % 4 < 2)
    return path


def in_a_linked_cache(case: Case) -> tuple[Path, Source]:
    """As caches of model hubs are: files under the names of their content, and links to them."""
    written, blobs, shown = in_one_data_file(case), case.folder / "blobs", case.folder / "snapshots" / "main"
    blobs.mkdir()
    shown.mkdir(parents=True)
    for number, path in enumerate((written, written.with_name("weights.bin"))):
        os.rename(path, blobs / f"{number}")
        (shown / path.name).symlink_to(Path("..", "..", "blobs", f"{number}"))
    return shown / written.name, Source(linked_data=(blobs,))


def by_bnfold(case: Case) -> Path:
    path = case.folder / "model.onnx"
    bnfold.save(bnfold.fold(case.exported()).model, path)
    return path


# --- torch ------------------------------------------------------------------------------------------------------------


def as_program(case: Case) -> Path:
    path = case.folder / "model.pt2"
    dynamic = ({0: torch.export.Dim.AUTO},) if case.seed % 2 else None
    torch.export.save(torch.export.export(case.network, (case.sample,), dynamic_shapes=dynamic), path)
    return path


def traced(case: Case) -> tuple[Path, Source]:
    path = case.folder / "model.pt"
    torch.jit.save(torch.jit.trace(case.network, case.sample), path)
    return path, Source(trust_pickle=True)


def scripted(case: Case) -> tuple[Path, Source]:
    path, script = case.folder / "model.pt", torch.jit.script(case.network)
    torch.jit.save(torch.jit.freeze(script) if case.seed % 2 else script, path)
    return path, Source(trust_pickle=True)


def saved(case: Case, content: Callable[[nn.Module], Any], *, zipped: bool = True) -> tuple[Path, Source]:
    path = case.folder / ("model.pt", "model.pth", "model.bin", "model.ckpt")[case.seed % 4]
    torch.save(content(case.network), path, _use_new_zipfile_serialization=zipped)
    return path, case.code


def as_module(case: Case) -> tuple[Path, Source]:
    path = case.folder / "model.pt"
    torch.save(case.network, path)
    return path, Source(trust_pickle=True)


def checkpoint(network: nn.Module) -> dict[str, Any]:
    """As training scripts write them."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return {"epoch": 3, "model": network.state_dict(), "optimizer": optimiser.state_dict(), "best": 0.7}


def averaged(network: nn.Module) -> dict[str, Any]:
    return {"state_dict": network.state_dict(), "state_dict_ema": network.state_dict(), "args": {"lr": 0.1}}


def of_data_parallel(network: nn.Module) -> dict[str, Any]:
    return {f"module.{name}": stored for name, stored in network.state_dict().items()}


def as_safetensors(case: Case) -> tuple[Path, Source]:
    from safetensors.torch import save_file

    path = case.folder / "model.safetensors"
    save_file(case.network.state_dict(), path, {"format": "pt"} if case.seed % 2 else None)
    return path, case.code


WRITERS: Mapping[str, Writer] = {
    "torch.onnx.export": by_dynamo,
    "torch.onnx.export, TorchScript": Case.exported,
    "onnx.save, one data file": in_one_data_file,
    "onnx.save, many data files": in_many_data_files,
    "onnx.shape_inference": with_shapes,
    "onnx.version_converter": converted,
    "onnx_ir": by_onnx_ir,
    "onnxsim": by_onnxsim,
    "onnxslim": by_onnxslim,
    "onnxoptimizer": by_onnxoptimizer,
    "onnxruntime, optimised": optimised,
    "onnxruntime, quantised dynamically": quantised_dynamically,
    "onnxruntime, quantised statically": quantised_statically,
    "a linked cache": in_a_linked_cache,
    "bnfold": by_bnfold,
    "torch.export.save": as_program,
    "torch.jit.trace": traced,
    "torch.jit.script": scripted,
    "torch.save, a network": as_module,
    "torch.save, weights": partial(saved, content=nn.Module.state_dict),
    "torch.save, weights before 1.6": partial(saved, content=nn.Module.state_dict, zipped=False),
    "torch.save, a checkpoint": partial(saved, content=checkpoint),
    "torch.save, averaged weights": partial(saved, content=averaged),
    "torch.save, DataParallel": partial(saved, content=of_data_parallel),
    "safetensors": as_safetensors,
}
SLOW = ("torch.onnx.export", "torch.export.save")
"""Seconds for each file."""


def at_hand() -> list[str]:
    """The writers that are installed."""
    packages = {"onnxsim", "onnxslim", "onnxoptimizer"}
    return [name for name in WRITERS if name not in packages or find_spec(name)]


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How many good files each writer wrote, which of them were refused, and what no good files were."""

    written: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    spoilt: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{count:6,}  {name}" for name, count in self.written.items()]
        lines += [f"{count:6,}  {name}, which onnxruntime does not open either" for name, count in self.spoilt.items()]
        total = f"{self.written.total():6,}  files, {len(self.refused)} refused"
        return "\n".join([*lines, total, *self.refused])


def complaint(path: Path, source: Source) -> str | None:
    """Why a file is not read, or what is odd about what is read; None where all is well."""
    try:
        loaded = load(path, source)
        norms = bnfold.inspect(loaded.model).norms if loaded.kind in ("onnx", "pt2") else ()
    except BnfoldError as error:
        return f"{type(error).__name__} {error.code}: {error}"
    unread = [outcome.site.name for outcome in norms if not outcome.folded and outcome.refusal is None]
    return f"no word of {unread[0]}" if unread else None


def is_good(path: Path) -> bool:
    """Whether the runtime opens an ONNX file; any other was written by torch itself."""
    try:
        if path.suffix == ".onnx":
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception:  # the runtime has no common base of its errors
        return False
    return True


def read_many(seeds: Iterable[int], names: Iterable[str] = ()) -> Tally:
    """Let the writers (all at hand, unless named) write a file each in turn, and read it."""
    tally, turn = Tally(), list(names) or at_hand()
    for seed in seeds:
        name = turn[seed % len(turn)]
        with tempfile.TemporaryDirectory() as folder:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                made = WRITERS[name](Case(seed, Path(folder)))
            path, source = made if isinstance(made, tuple) else (made, Source())
            found = complaint(path, source)
            if found is not None and not is_good(path):
                tally.spoilt[name] += 1
                continue
            tally.written[name] += 1
            if found is not None:
                tally.refused.append(f"{name}, seed {seed}: {found}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Read what every writer at hand writes; fail if a file is refused.")
    parser.add_argument("--count", type=int, default=1000, help="files in all")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    words = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tally = read_many(range(words.first, words.first + words.count))
    print(tally)
    return int(bool(tally.refused))


if __name__ == "__main__":
    sys.exit(main())

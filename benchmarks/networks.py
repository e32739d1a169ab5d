"""Public architectures as an exporter leaves them: every batch norm still there, and none of them trivial.

    python benchmarks/networks.py resnet50 --cache zoo

Weights are drawn from a seed. The statistics are calibrated: in one forward pass each batch norm measures what reaches
it, so that deep networks neither overflow nor die out. γ has both signs and β is not zero, because a fold that is wrong
about either would otherwise be right by luck. The images are smooth ones that differ from each other: of pure noise,
deep networks see only the average, and what they make of that is rounding error. What is built is kept in the folder of
`--cache`:

    NAME.onnx   the program exported by torch.onnx.export(dynamo=True, optimize=False)
    NAME.pt2    the same program, with a dynamic batch
    NAME.npz    two inputs of different batch sizes, and what the network in float64 answers
    NAME.json   what was built, and with what

`build_default` adds what torch's exporter writes at its defaults, and, of an architecture whose class can merge its own
branches (`reparameterizable`), `build_own` what comes of that:

    NAME.default.onnx       the program exported with dynamo=True, optimize=True
    NAME.own.onnx           the network after timm's reparameterize_model, exported with optimize=False
    NAME.own.default.onnx   the same with optimize=True
    NAME.own.pt2            the same as a program
    NAME.own.json           how exact the method of the class is, and what was built with what
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

# torch's CPU build cannot load torchvision's operators; timm imports torchvision and uses none of them.
TORCHVISION_OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "deform_conv2d",
)
# Native resolution would take minutes in float64, and shows nothing more.
SMALLER_INPUTS = {"convmixer_768_32": (3, 96, 96)}
CALIBRATION_BATCH = 16
BATCHES = (2, 3)
PARAMETERS_AT_MOST = 30_000_000
EXACT = 1e-9
_declared: list[torch.library.Library] = []


class Unusable(Exception):
    """A network that is not part of the measurement, and why."""


def timm() -> Any:
    """The library of architectures, importable without torchvision's compiled operators."""
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")
        with contextlib.suppress(RuntimeError):  # they exist: a build with operators
            for name in TORCHVISION_OPERATORS:
                library.define(f"{name}(Tensor x) -> Tensor")
        _declared.append(library)
    import timm

    return timm


def create(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """The network with random weights and calibrated statistics, in eval mode, and the images it was calibrated on."""
    torch.manual_seed(seed)
    network: nn.Module = timm().create_model(name, pretrained=False).eval()
    norms = batch_norms(network)
    if not norms:
        raise Unusable("it has no batch norm")
    draw_affine(norms)
    images = smooth_images(CALIBRATION_BATCH, *input_size(network, name))
    calibrate(network, norms, images)
    return network, images


def smooth_images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Blurred coarse noise with a little fine noise on it."""
    coarse = torch.randn(batch, channels, 8, 8)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear") + 0.1 * torch.randn(1, 1, height, width)


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def input_size(network: nn.Module, name: str) -> tuple[int, ...]:
    """Channels, height and width that the network was designed for."""
    return SMALLER_INPUTS.get(name) or tuple(network.default_cfg["input_size"])  # type: ignore[index, arg-type]


@torch.no_grad()
def draw_affine(norms: list[nn.modules.batchnorm._BatchNorm]) -> None:
    """γ between 0.5 and 1.5 of either sign, β normal."""
    for norm in norms:
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5).mul_(torch.randint(0, 2, norm.weight.shape) * 2 - 1)
            norm.bias.normal_(std=0.5)


@torch.no_grad()
def calibrate(network: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], images: Tensor) -> None:
    """One forward pass in which batch norms, and nothing else, are in train mode and keep what they measure."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    if not torch.isfinite(network(images)).all():
        raise Unusable("its output is not finite")


def draw(seed: int) -> Iterator[tuple[str, str | None]]:
    """All of timm's architectures in random order, each with the reason not to use it, if there is one."""
    names = sorted(timm().list_models())
    random.Random(seed).shuffle(names)
    for name in names:
        try:
            with quiet(), torch.device("meta"):
                network = timm().create_model(name, pretrained=False)
        except Exception as error:  # whatever hundreds of constructors raise on a device without memory
            yield name, f"it cannot be built without memory: {type(error).__name__}"
            continue
        parameters = sum(parameter.numel() for parameter in network.parameters())
        if not batch_norms(network):
            yield name, "it has no batch norm"
        elif parameters > PARAMETERS_AT_MOST:
            yield name, f"it has {parameters / 1e6:.0f} million parameters"
        else:
            yield name, None


def build(name: str, cache: Path, seed: int = 0) -> dict[str, Any]:
    """Build what is not in the cache, and say what it is."""
    record = cache / f"{name}.json"
    wanted = {"name": name, "seed": seed, "torch": torch.__version__, "timm": timm().__version__}
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        if wanted.items() <= found.items():
            return found
    cache.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with quiet():
        network, images = create(name, seed)
        facts = write(name, network, images, cache)
    facts |= wanted | {"modules": len(batch_norms(network)), "seconds": round(time.perf_counter() - started, 1)}
    record.write_text(json.dumps(facts, indent=1))
    return facts


@torch.no_grad()
def write(name: str, network: nn.Module, images: Tensor, cache: Path) -> dict[str, Any]:
    """Write both exports and the answers in float64; the network is in float64 afterwards."""
    inputs = [part.clone() for part in images.split([*BATCHES, len(images) - sum(BATCHES)])[: len(BATCHES)]]
    program = exported(network, inputs[0])
    torch.export.save(program, cache / f"{name}.pt2")
    write_onnx(program, cache / f"{name}.onnx", optimize=False)
    proto = onnx.load(cache / f"{name}.onnx", load_external_data=False)
    network.double()
    answers = [network(images.double()) for images in inputs]
    if not all(isinstance(answer, Tensor) for answer in answers):
        raise Unusable("its output is no tensor")
    pairs = enumerate(zip(inputs, answers, strict=True))
    arrays = {key: value.numpy() for i, (x, y) in pairs for key, value in ((f"x{i}", x), (f"y{i}", y))}
    np.savez(cache / f"{name}.npz", **arrays)
    return {
        "input": list(images.shape[1:]),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "batch_norm_calls": sum("batch_norm" in str(node.target) for node in program.graph.nodes),
        "batch_norm_nodes": sum(node.op_type == "BatchNormalization" for node in proto.graph.node),
        "opset": next(each.version for each in proto.opset_import if each.domain == ""),
    }


def exported(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a program with a dynamic batch."""
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def write_onnx(program: torch.export.ExportedProgram, path: Path, *, optimize: bool) -> None:
    found = torch.onnx.export(program, dynamo=True, optimize=optimize, verbose=False)
    assert found is not None, "the exporter returns a program unless it is given a file"
    found.save(path)


def reparameterizable(network: nn.Module) -> bool:
    """Whether timm's reparameterize_model finds something to do."""
    return any(hasattr(module, verb) for module in network.modules() for verb in ("fuse", "reparameterize"))


def build_default(name: str, cache: Path) -> Path:
    """What torch's exporter makes of the program of `build` at its defaults."""
    program, target = cache / f"{name}.pt2", cache / f"{name}.default.onnx"
    if not target.exists() or target.stat().st_mtime < program.stat().st_mtime:
        with quiet():
            write_onnx(torch.export.load(program), target, optimize=True)
    return target


def build_own(name: str, cache: Path, seed: int = 0) -> dict[str, Any]:
    """Build what the class makes of the network that `build` has built, with the very same numbers."""
    record = cache / f"{name}.own.json"
    wanted = {"name": name, "seed": seed, "torch": torch.__version__, "timm": timm().__version__}
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        if wanted.items() <= found.items():
            return found
    with quiet():
        network: nn.Module = timm().create_model(name, pretrained=False).eval()
        network.load_state_dict(torch.export.load(cache / f"{name}.pt2").state_dict)
        stored = np.load(cache / f"{name}.npz")
        facts = wanted | write_own(name, network, stored, cache)
    record.write_text(json.dumps(facts, indent=1))
    return facts


@torch.no_grad()
def write_own(name: str, network: nn.Module, stored: Any, cache: Path) -> dict[str, Any]:
    """Write the exports, and say how far the class is from the answers if it computes in float64 from the start."""
    if not reparameterizable(network):
        raise Unusable("its class has no method to merge branches")
    from timm.utils.model import reparameterize_model

    example = torch.from_numpy(stored["x0"])
    own = reparameterize_model(network)
    program = exported(own, example)
    torch.export.save(program, cache / f"{name}.own.pt2")
    for optimize in (False, True):
        write_onnx(program, cache / f"{name}.own{'.default' if optimize else ''}.onnx", optimize=optimize)
    with in_float64():  # some classes make new layers of the default type
        exact = reparameterize_model(network.double())(example.double()).numpy()
    difference = np.abs(exact - stored["y0"]).max() / np.abs(stored["y0"]).max()
    if not difference < EXACT:
        raise Unusable(f"its class changes what it computes by {difference:.1e} in float64")
    return {"difference": float(difference)}


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter talks; errors still come out as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build networks for the zoo.")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default", action="store_true", help="what torch's exporter writes at its defaults, too")
    parser.add_argument("--own", action="store_true", help="what the class itself makes of its branches, too")
    parser.add_argument("--draw", type=int, metavar="N", help="instead: N names drawn from timm, and those passed over")
    arguments = parser.parse_args()
    if arguments.draw:
        print(json.dumps(drawn(arguments.draw, arguments.seed)))
    for name in arguments.names:
        facts = build(name, arguments.cache, arguments.seed)
        if arguments.default:
            build_default(name, arguments.cache)
        if arguments.own:
            facts |= {"own": build_own(name, arguments.cache, arguments.seed)}
        print(json.dumps(facts), flush=True)


def drawn(number: int, seed: int) -> list[tuple[str, str | None]]:
    """The first so many usable ones, and what was passed over on the way."""
    found: list[tuple[str, str | None]] = []
    for name, reason in draw(seed):
        found.append((name, reason))
        if sum(why is None for _, why in found) == number:
            break
    return found


if __name__ == "__main__":
    main()

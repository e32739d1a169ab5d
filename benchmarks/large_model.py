"""A model of 5 GB, and the memory that bnfold needs for it.

    python benchmarks/large_model.py FOLDER                       write it, fold it, certify it, check it, remove it
    python benchmarks/large_model.py FOLDER --program             the same network from torch, exported to ONNX
    python benchmarks/large_model.py FOLDER --layers 2 --width 500

Products with a batch norm behind every fourth, float32, weights in a file of their own: one random pattern, shifted for
each layer, so that it is written as fast as the disk takes it; the program has random weights of each layer's own, in
the one archive that `torch.export.save` writes. The peak is of anonymous memory (RssAnon), polled from
`/proc` while the command runs, of the process and of those that it starts together; a file that is mapped is not
counted, since the system may drop it at any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bnfold.cli.supervised import family

NORM = ("gamma", "beta", "mean", "variance")
LOW, HIGH = (0.5, -1, -1, 0.5), (1.5, 1, 1, 1.5)


def write_model(folder: Path, *, layers: int, width: int, every: int = 4, seed: int = 0) -> Path:
    """Write `large.onnx` and `large.data`; the bytes depend on nothing but the arguments."""
    random = np.random.default_rng(seed)
    pattern = (random.standard_normal(width * width) / np.sqrt(width)).astype(np.float32)
    path, data = folder / "large.onnx", folder / "large.data"
    nodes, tensors, value = [], [], "x"
    with data.open("wb") as file:
        for layer in range(layers):
            tensors.append(_tensor(f"weight{layer}", (width, width), data.name, file.tell()))
            file.write(memoryview(pattern[layer:]))
            file.write(memoryview(pattern[:layer]))
            product, passed = f"product{layer}", f"passed{layer}"
            nodes.append(helper.make_node("Gemm", [value, f"weight{layer}"], [product], f"gemm{layer}"))
            for name, low, high in zip(NORM, LOW, HIGH, strict=True) if layer % every == 0 else ():
                tensors.append(_tensor(f"{name}{layer}", (width,), data.name, file.tell()))
                file.write(random.uniform(low, high, width).astype(np.float32).tobytes())
            if layer % every == 0:
                statistics = [f"{name}{layer}" for name in NORM]
                norm = helper.make_node("BatchNormalization", [product, *statistics], [f"normed{layer}"], f"bn{layer}")
                nodes.append(norm)
                product = norm.output[0]
            nodes.append(helper.make_node("Relu", [product], [passed], f"relu{layer}"))
            value = passed
    shape = ("batch", width)
    ports = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value))
    graph = helper.make_graph(nodes, "large", *([port] for port in ports), tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write_program(path: Path, *, layers: int, width: int, every: int = 4, seed: int = 0) -> None:
    """Write the network as an exported program with a free batch."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(nn.Linear(width, width))
        if layer % every == 0:
            norm = nn.BatchNorm1d(width)
            parameters = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            for values, low, high in zip(parameters, LOW, HIGH, strict=True):
                nn.init.uniform_(values, low, high)
            parts.append(norm)
        parts.append(nn.ReLU())
    batch = torch.export.Dim("batch")
    program = torch.export.export(nn.Sequential(*parts).eval(), (torch.zeros(2, width),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def _tensor(name: str, shape: tuple[int, ...], location: str, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    length = 4 * int(np.prod(shape))
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def peak_of(arguments: list[str], program: tuple[str, ...] = ("-m", "bnfold")) -> dict[str, Any]:
    """Run a program; its exit code, seconds, and the largest anonymous memory in bytes."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, *program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_anonymous, family(process.pid))))
            time.sleep(0.01)
        output = process.stdout.read() if process.stdout else ""
    return {
        "command": arguments[0],
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - start, 2),
        "peak_anonymous_bytes": peak,
        "said": output.strip().splitlines(),
    }


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--width", type=int, default=5600)
    parser.add_argument("--every", type=int, default=4, help="a batch norm behind every so many products")
    parser.add_argument("--program", action="store_true", help="a program of torch, and its export")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = {"layers": arguments.layers, "width": arguments.width, "every": arguments.every}
    if arguments.write:
        write_program(arguments.write, **size)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = exported(arguments.folder, size) if arguments.program else folded(arguments.folder, size)
    large = sum(file.stat().st_size for file in arguments.folder.glob("large.*"))
    print(json.dumps({"bytes": large, "results": results}, indent=2))
    if not arguments.keep:
        for file in (*arguments.folder.glob("large.*"), *arguments.folder.glob("folded.*")):
            file.unlink()


def folded(folder: Path, size: Mapping[str, int]) -> list[dict[str, Any]]:
    """An ONNX file folded with its check and a certificate, the certificate derived again, the files checked."""
    model, target, proof = str(write_model(folder, **size)), str(folder / "folded.onnx"), str(folder / "folded.json")
    return [
        peak_of(["fold", model, "-o", target, "--certificate", proof]),
        peak_of(["check", model, target, "--verify-certificate", proof]),
        peak_of(["check", model, target]),
    ]


def exported(folder: Path, size: Mapping[str, int]) -> list[dict[str, Any]]:
    """A program folded and exported, with its check."""
    program = folder / "large.pt2"
    words = [word for key, value in size.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, __file__, str(folder), "--write", str(program), *words], check=True)
    return [peak_of(["export", str(program), "-o", str(folder / "folded.onnx")])]


if __name__ == "__main__":
    main()

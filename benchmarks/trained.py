"""The trained RepVGG of models/ before and after: files in a folder, and what they do on its test set, as JSON.

    python benchmarks/trained.py FOLDER

The first row is torch's default export; decisions are compared with those of the original in torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import counting
import numpy as np
import programs
import torch
from networks import exported, quiet, write_onnx
from peers import DEFAULT, PLAIN

import bnfold

Merge = Literal["auto", "never"]
WAYS: tuple[tuple[str, Merge | None], ...] = (
    ("as exported", None),
    ("bnfold, merge never", "never"),
    ("bnfold", "auto"),
)
NAME = "digits_repvgg"
MODELS = Path(__file__).resolve().parent.parent / "models"
sys.path.insert(0, str(MODELS))

from nets import NETS, RepVGGBlock  # noqa: E402
from table import onnx_outputs, torch_outputs  # noqa: E402
from tasks import accuracy, decisions, load  # noqa: E402

Row = dict[str, Any]


def rows(folder: Path) -> Iterator[Row]:
    network = NETS[NAME]().eval()
    network.load_state_dict(bnfold.load(MODELS / f"{NAME}.pt").state_dict)
    data = load(NAME)
    program = exported(network, torch.from_numpy(data.test_x[0][:2]))
    original = torch_outputs(network, data.test_x)
    blocks = sum(isinstance(module, RepVGGBlock) for module in network.modules())

    def row(given: str, tool: str, counts: Any, outputs: Any, file: str | None) -> Row:
        kept = {key: getattr(counts, key) for key in asdict(programs.Counts(0, 0, 0, 0))}
        same = float(np.mean(decisions(NAME, outputs) == decisions(NAME, original)))
        right = accuracy(NAME, outputs, data.test_y)
        return Row(given=given, tool=tool, file=file, blocks=blocks, accuracy=right, same=same) | kept

    for number, (exporter, optimize) in enumerate(((DEFAULT, True), (PLAIN, False))):
        source = folder / f"{number}.onnx"
        write_onnx(program, source, optimize=optimize)
        for tool, merge in WAYS:
            path = source if merge is None else folder / f"{number}.{merge}.onnx"
            if merge is not None:
                bnfold.save(bnfold.fold(source, merge=merge).model, path)
            yield row(f"`{exporter}`", tool, counting.count(path), onnx_outputs(path, data.test_x), path.name)
    for tool, merge in WAYS:
        found = program if merge is None else bnfold.fold(program, merge=merge).model
        yield row("`torch.export`", tool, programs.count(found), torch_outputs(found.module(), data.test_x), None)
    np.savez(folder / "image.npz", **{input_name(folder / "0.onnx"): data.test_x[0][:1]})


def input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(path).graph.input[0].name)


def main() -> None:
    with quiet():
        found = list(rows(Path(sys.argv[1])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

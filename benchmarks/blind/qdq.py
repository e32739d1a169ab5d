"""A correct fold in front of fake quantisers, again and again: how often does the check raise an alarm?

Twelve layers of convolution, batch norm, relu and a Q/DQ pair. The candidate has the batch norms folded in float64 and
rounded once, and the same scales. What reaches a quantiser then differs in its last bit, and once in a while that tips
a value into the next step: it is no error.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import oracle
from net import FLOAT, Net
from surgery import fold
from trial import RIGHT, check

LAYERS, CHANNELS, SIZE = 12, 8, 8


def original(seed: int) -> onnx.ModelProto:
    """The chain, with scales fitted to what reaches each quantiser on one calibration batch."""
    net = Net(10_000 + seed, opset=19)
    names, y = [], "x"
    count = 3
    for _ in range(LAYERS):
        y = net.op("Relu", net.norm(net.conv(y, count, CHANNELS), CHANNELS))
        names.append((len(net.stored), y))
        y = net.quantised(y, 1.0)
        count = CHANNELS
    head = net.linear(net.pooled(y), CHANNELS, 10)
    made = net.model([("x", FLOAT, ("batch", 3, SIZE, SIZE))], [(head, FLOAT, ("batch", 10))])
    for index, name in names:
        calibrate(made, index, name, seed)
    return made


def calibrate(model: onnx.ModelProto, index: int, name: str, seed: int) -> None:
    """The step of one quantiser: 127 steps up to the largest value in front of it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, None))
    position = next(i for i, node in enumerate(probe.graph.node) if name in node.output)
    del probe.graph.node[position + 1 :]
    (values,) = oracle.run(probe, oracle.feeds(model, seed, 4))
    step = np.float32(max(float(values.max()), 1e-3) / 127)
    stored = model.graph.initializer[index]
    stored.CopyFrom(onnx.numpy_helper.from_array(step, stored.name))


def pairs(count: int, folder: Path) -> Iterator[Path]:
    for seed in range(count):
        place = folder / f"{seed:03d}"
        place.mkdir()
        model = original(seed)
        onnx.save(model, place / "reference.onnx")
        onnx.save(fold(model), place / "candidate.onnx")
        yield place


def run(count: int, jobs: int, timeout: float, out: Path | None) -> int:
    """Check `count` correct folds; 1 if one is not accepted."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda place: check(place, timeout), list(pairs(count, Path(folder)))))
    if out:
        out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(dict(Counter(each["verdict"] for each in results)))
    alarms = [(seed, each) for seed, each in enumerate(results) if each["verdict"] not in RIGHT["harmless"]]
    for seed, each in alarms:
        print(f"seed {seed}: {each['verdict']}: {each['sentence']}")
    print(f"{len(alarms)} of {count} correct folds are not accepted")
    return 1 if alarms else 0

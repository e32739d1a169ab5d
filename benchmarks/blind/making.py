"""The material: pairs of files in numbered folders in random order, each confirmed in float64, and their manifest.

A mutant is kept if it computes something else on some plausible input than the network and than a correct fold of it,
and by more than that fold's own rounding; a rewrite if it computes the same. What cannot be
confirmed, or what onnxruntime does not load, is dropped.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bases
import harmless
import harmless_layers
import numpy as np
import onnx
import onnxruntime
import oracle
import structures
import torch
import wrong
from surgery import Unfit

ELSE = 1e-9
ROUNDINGS = 2
BOUNDS = (("half", 2e-2), ("qdq", 5e-2))
BOUND = 1e-4
MISTAKE = 1e-2
FEEDS = ((1, 2, 1.0), (2, 3, 1.0), (3, 2, 3.0), (4, 1, 1.0))
TOOL_PAIRS, TOOL_ZOO = 10, 1
Models = Mapping[str, onnx.ModelProto]
Random = np.random.Generator


@dataclass(frozen=True)
class Pair:
    label: str
    words: str
    base: str
    reference: onnx.ModelProto
    candidate: onnx.ModelProto
    effect: float


def make(folder: Path, cache: Path, seed: int) -> None:
    """Build, confirm, shuffle, write."""
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    small = bases.trained() | {name: build() for name, build in bases.BUILT.items()}
    large = bases.public(cache)
    judge = Judge(small | large)
    with tempfile.TemporaryDirectory() as scratch:
        found = [*made_mutants(judge, small, large, seed), *made_harmless(judge, small, large, seed, Path(scratch))]
    order = np.random.default_rng(seed).permutation(len(found))
    entries = [write(folder, number, found[int(i)]) for number, i in enumerate(order)]
    text = json.dumps({"seed": seed, "versions": versions(), "pairs": entries}, indent=1, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    lines = [f"{e['number']:03d} {' '.join(e['sha256'].values())}" for e in entries]
    (folder / "hashes.txt").write_text("\n".join([f"manifest.json {digest}", *lines]) + "\n")
    counts = {label: sum(e["label"] == label for e in entries) for label in ("mutant", "harmless")}
    print(f"{counts}; sha256 of manifest.json: {digest}")


def versions() -> dict[str, str]:
    return {each.__name__: each.__version__ for each in (np, onnx, onnxruntime, torch)}


class Judge:
    """What the unchanged networks answer, kept, and how far a changed one is from it."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.known: dict[tuple[str, int], Any] = {}

    def feeds(self, name: str) -> list[dict[str, Any]]:
        if name in bases.ZOO:
            return [smooth(self.models[name])]
        made = []
        for seed, batch, size in FEEDS:
            drawn = oracle.feeds(self.models[name], seed, batch)
            made.append({k: (v * v.dtype.type(size) if v.dtype.kind == "f" else v) for k, v in drawn.items()})
        return made

    def effect(self, name: str, candidate: onnx.ModelProto, reference: onnx.ModelProto | None = None) -> float:
        """The largest deviation from the network, or from `reference`, over all feeds of the network; infinite if the
        candidate does not run where they do."""
        worst = 0.0
        for i, feed in enumerate(self.feeds(name)):
            right = self.answer(reference or self.models[name], name, i, feed)
            try:
                answer = self.answer(candidate, name, i, feed)
            except Exception:  # a reshape that does not fit, above all
                return float("inf")
            worst = max(worst, oracle.distance(right, answer))
        return worst

    def answer(self, model: onnx.ModelProto, name: str, index: int, feed: Mapping[str, Any]) -> Any:
        key = (hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(), index)
        if key not in self.known:
            self.known[key] = oracle.run(model, feed)
        return self.known[key]

    def effect_in_runtime(self, name: str, candidate: onnx.ModelProto) -> float:
        """The same by onnxruntime instead of the oracle, on the first feed."""
        (feed, *_) = self.feeds(name)
        return oracle.distance(session(self.models[name]).run(None, feed), session(candidate).run(None, feed))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def smooth(model: onnx.ModelProto) -> dict[str, Any]:
    """Two blurred images: of pure noise a deep network sees the average only, and makes rounding errors of that."""
    (given,) = model.graph.input
    shape = [axis.dim_value for axis in given.type.tensor_type.shape.dim][1:]
    drawn = np.random.default_rng(1)
    coarse = torch.from_numpy(drawn.normal(size=(2, shape[0], 8, 8)))
    images = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear").numpy()
    return {given.name: (images + 0.1 * drawn.normal(size=images.shape)).astype(np.float32)}


def loads(model: onnx.ModelProto) -> bool:
    try:
        session(model)
    except Exception as error:
        log(f"not loaded: {error}"[:160])
        return False
    return True


def log(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def random_of(*key: object) -> Random:
    """Numbers that depend on what they are for, and not on what was drawn before."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def changed(words: str, name: str, change: Callable[..., onnx.ModelProto], models: Models, seed: int) -> Any:
    """The changed model, or None where it does not apply."""
    try:
        return change(models[name], random_of(seed, words, name))
    except Unfit:
        return None
    except Exception as error:  # converters and inference on strange graphs
        log(f"{words} / {name}: {type(error).__name__}: {error}"[:200])
        return None


def made_mutants(judge: Judge, small: Models, large: Models, seed: int) -> Iterator[Pair]:
    models = {**small, **large}
    for words, name, change in planned_mutants(small, large, seed):
        candidate = changed(words, name, change, models, seed)
        if candidate is None or not loads(candidate):
            log(f"dropped: {words} / {name}")
            continue
        correct = wrong.folded_or_not(models[name])
        effect, beside = judge.effect(name, candidate), judge.effect(name, candidate, correct)
        if not min(effect, beside) > max(ELSE, ROUNDINGS * judge.effect(name, correct)):
            log(f"dropped, no effect: {words} / {name}: {effect:.1e}")
            continue
        yield Pair("mutant", words, name, models[name], candidate, effect)


def planned_mutants(small: Models, large: Models, seed: int) -> Iterator[tuple[str, str, wrong.Change]]:
    """Two fitting small networks for each formula and each way with numbers; the structures' own; a few large ones."""
    generic = {f"fold: {words}": wrong.with_formula(f) for words, f in wrong.FORMULAS.items()}
    generic |= {f"folded, then {words}": wrong.with_numbers(f) for words, f in wrong.NUMBERS.items()}
    generic |= {"folded, then one bias element off by 1 %": wrong.bias_off(1.01)}
    generic |= {"folded, then one bias element off by 0.01 %": wrong.bias_off(1.0001)}
    generic |= {"folded, then all weights through fp16": wrong.whole_half}
    for words, change in generic.items():
        order = random_of(seed, words).permutation(sorted(small))
        fitting = [name for name in order if changed(words, str(name), change, small, seed) is not None]
        yield from ((words, str(name), change) for name in fitting[:2])
    for words, names, change in structures.STRUCTURES:
        yield from ((words, name, change) for name in names)
    names = sorted(large)
    picks = [words for i, words in enumerate(generic) if i % 5 == 0]
    for i, words in enumerate(picks):
        yield words, names[i % len(names)], generic[words]


def made_harmless(judge: Judge, small: Models, large: Models, seed: int, scratch: Path) -> Iterator[Pair]:
    models = {**small, **large}
    for words, name, candidate in (*by_hand(small, large, seed), *by_tools(small, large, seed, scratch)):
        if candidate.SerializeToString() == models[name].SerializeToString() or not loads(candidate):
            log(f"dropped: {words} / {name}")
            continue
        effect = judge.effect(name, candidate)
        if not effect <= next((bound for start, bound in BOUNDS if name.startswith(start)), BOUND):
            if name in bases.BUILT and judge.effect_in_runtime(name, candidate) > MISTAKE:
                yield Pair("mutant", f"what {words} really makes of it", name, models[name], candidate, effect)
                continue
            log(f"dropped, not confirmed: {words} / {name}: {effect:.1e}")
            continue
        yield Pair("harmless", words, name, models[name], candidate, effect)


def by_hand(small: Models, large: Models, seed: int) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    names = sorted(large)
    for i, (words, change) in enumerate(harmless_layers.REWRITES.items()):
        wanted = 12 if change is harmless.own_fold else 3
        order = [str(name) for name in random_of(seed, words).permutation(sorted(small))]
        made = ((name, changed(words, name, change, small, seed)) for name in order)
        fitting = [(name, model) for name, model in made if model is not None]
        yield from ((words, name, model) for name, model in fitting[:wanted])
        if i % 7 == 0:
            model = changed(words, names[i // 7 % len(names)], change, large, seed)
            if model is not None:
                yield words, names[i // 7 % len(names)], model


def by_tools(small: Models, large: Models, seed: int, scratch: Path) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    here = Path(__file__).parent
    tools = subprocess.run(
        [sys.executable, "-c", "import tools; print('\\n'.join(tools.TOOLS))"],
        cwd=here, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name, model in {**small, **large}.items():
        onnx.save(model, scratch / f"{name}.onnx")
    for k, tool in enumerate(tools):
        names = [str(name) for name in random_of(seed, tool).permutation(sorted(small))[: 3 * TOOL_PAIRS]]
        names += [sorted(large)[k % len(large)]] * TOOL_ZOO if large else []
        targets = {name: scratch / f"out_{k}_{name}.onnx" for name in names}
        lines = "".join(f"{scratch / name}.onnx\t{target}\n" for name, target in targets.items())
        done = subprocess.run(
            [sys.executable, str(here / "tools.py"), tool], input=lines, text=True, capture_output=True, check=False
        )
        log(f"{tool}: {done.stderr[-2000:]}")
        written = [name for name in names if targets[name].exists()]
        kept = [name for name in written if standard(onnx.load(targets[name]))]
        for name in [*[n for n in kept if n not in large][:TOOL_PAIRS], *[n for n in kept if n in large]]:
            yield tool, name, onnx.load(targets[name])


def standard(model: onnx.ModelProto) -> bool:
    """Only operators that every runtime knows."""
    own = {function.domain for function in model.functions}
    return all(node.domain in {"", "ai.onnx"} | own for node in model.graph.node)


def write(folder: Path, number: int, pair: Pair) -> dict[str, Any]:
    place = folder / f"{number:03d}"
    place.mkdir(parents=True)
    onnx.save(pair.reference, place / "reference.onnx")
    if pair.words == harmless_layers.EXTERNAL:
        onnx.save(pair.candidate, place / "candidate.onnx", save_as_external_data=True, location="candidate.data",
                  size_threshold=0)  # fmt: skip
    else:
        onnx.save(pair.candidate, place / "candidate.onnx")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.iterdir())}
    return {
        "number": number,
        "label": pair.label,
        "what": pair.words,
        "base": pair.base,
        "effect": float(f"{pair.effect:.1e}") if np.isfinite(pair.effect) else "decision, shape or not finite",
        "sha256": sums,
    }

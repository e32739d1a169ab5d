"""Random ONNX models, folded: never another result, never a crash, never an invalid model.

    python tests/random_onnx.py --count 20000 --seed 0 --jobs 2     check so many models
    python tests/random_onnx.py --seed 4711 --count 1 --show        one model, printed; if it is wrong, made small
    python tests/random_onnx.py --faults                            plant each fault, until it is found

Every model is executed in float64 as it was built and as it was folded, on inputs of several sizes, by an interpreter
of its own (`numpy_onnx.py`). It is folded in the type it has and as doubles: then no rounding hides an error. Beyond
equal results: the caller's model keeps every byte, its inputs and outputs their names, every batch norm has an outcome,
the certificate derives every new number again, no operator is added, folding again changes nothing, and neither names
nor the order of nodes matter.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy_onnx import Array, run
from onnx import TensorProto
from random_harness import Campaign, Fault, Tally, Wrong
from random_onnx_graphs import Drawn, draw
from random_onnx_scope import Undrawable

from bnfold import folding, rules, travel
from bnfold.algebra import ChannelAffine
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.frontends.onnx import lenses
from bnfold.outcome import FoldReport
from bnfold.verify.certificate import derive
from bnfold.verify.result import Status

EXACT, ROUNDED = 1e-9, 1e-3
EVERY_AGAIN, EVERY_ORDER, EVERY_RUN = 2, 5, 5
"""How often a model is folded again, shuffled, and run by the runtime: each takes as long as the rest."""


@dataclass
class Models(Tally):
    """What became of many models."""

    rules: Counter[str] = field(default_factory=Counter)
    into: Counter[str] = field(default_factory=Counter)
    crossed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    TITLES = {"counts": "models", "rules": "folds", "into": "into", "crossed": "crossed", "reasons": "left"}  # noqa: RUF012

    def note(self, report: FoldReport) -> None:
        """Count the outcomes of one fold."""
        for outcome in report.outcomes:
            kind = "norm" if outcome.is_norm else "affine"
            if outcome.refusal is not None:
                self.reasons[f"{kind} {outcome.refusal.reason.code}"] += 1
                continue
            way = "via" if outcome.via else "straight" if outcome.into else "vanished"
            self.rules[f"{kind} {outcome.rule} {way}"] += 1
            self.into.update(site.op for site in outcome.into)
            self.crossed.update({site.op for site in outcome.via})


# one model


@dataclass(frozen=True)
class Reference:
    """What the model computes as it was built, for one set of inputs."""

    feed: dict[str, Array]
    outputs: list[Array]
    largest: float


def references(drawn: Drawn) -> list[Reference]:
    """The runs that work: other sizes than those it was drawn with may not fit the model."""
    found = []
    for feed in drawn.feeds:
        try:
            outputs, largest = run(drawn.model, feed)
        except (ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError):
            continue
        if all(np.isfinite(each).all() for each in outputs) and largest < 1e6:
            found.append(Reference(feed, outputs, largest))
    return found


def examine(drawn: Drawn, seed: int, tally: Models) -> None:
    """Fold the model as it is and as doubles; raise `Wrong` where that does harm."""
    model, runs = frontend.from_proto(drawn.model), references(drawn)
    options = FoldOptions(max_growth=1.1 if seed % 2 else 1e9)
    dtype, again = drawn.model.graph.input[0].type.tensor_type.elem_type, seed % EVERY_AGAIN == 0
    before = frontend.to_bytes(model) if again else b""
    is_double = dtype == TensorProto.DOUBLE and not _rounds(drawn.model)
    folded, report = frontend.fold_model(model, options)
    if again and frontend.to_bytes(model) != before:
        raise Wrong("the caller's model changed")
    tally.note(report)
    proto = frontend.to_proto(folded)
    _demand_order(drawn.model, proto, report)
    _demand_certified(model, folded, report)
    if dtype in (TensorProto.FLOAT, TensorProto.DOUBLE):
        _compare(proto, runs, EXACT if is_double else ROUNDED)
    if not is_double:
        wide, _ = frontend.fold_model(frontend.as_float64(model), options)
        _compare(frontend.to_proto(wide), runs, EXACT)
    if again:
        _demand_settled(folded, options, report)
    if seed % EVERY_ORDER == 0:
        _demand_same_in_any_order(drawn.model, options, report, seed)
    if seed % EVERY_RUN == 0 and dtype == TensorProto.FLOAT and _runs(drawn.model, drawn) and not _runs(proto, drawn):
        raise Wrong("the runtime does not run it any more")


def _rounds(model: onnx.ModelProto) -> bool:
    """Whether the model holds anything in less than double precision."""
    stored = {tensor.data_type for tensor in model.graph.initializer}
    stored |= {attribute.t.data_type for node in _nodes(model) for attribute in node.attribute}
    return TensorProto.FLOAT in stored or any(node.op_type == "Cast" for node in _nodes(model))


def _compare(folded: onnx.ModelProto, runs: Sequence[Reference], tolerance: float) -> None:
    for reference in runs:
        made, _ = run(folded, reference.feed)
        for one, other, port in zip(reference.outputs, made, folded.graph.output, strict=True):
            if one.shape != other.shape:
                raise Wrong(f"{port.name}: {one.shape} became {other.shape}")
            error = float(np.abs(one - other).max(initial=0.0))
            if not error <= tolerance * max(reference.largest, 1.0):
                raise Wrong(f"{port.name} differs by {error:.3g} of {reference.largest:.3g}")


def _demand_order(before: onnx.ModelProto, after: onnx.ModelProto, report: FoldReport) -> None:
    check_model(after)
    for ports in ("input", "output"):
        names = [[port.name for port in getattr(model.graph, ports)] for model in (before, after)]
        if names[0] != names[1]:
            raise Wrong(f"{ports} names {names[0]} became {names[1]}")
    nodes = [computing(model) for model in (before, after)]
    if nodes[1] > nodes[0]:
        raise Wrong(f"{nodes[0]} computing nodes became {nodes[1]}")
    norms = sum(node.op_type == "BatchNormalization" for node in _nodes(before))
    if len(report.norms) != norms:
        raise Wrong(f"{len(report.norms)} outcomes for {norms} batch norms")


def _demand_certified(model: Any, folded: Any, report: FoldReport) -> None:
    layer = derive(frontend.evidence(model), frontend.evidence(folded), report)
    nothing_stored = layer.status is Status.SKIPPED and "no operator with stored weights" in layer.because
    if layer.status is not Status.PASS and not nothing_stored:
        raise Wrong(f"{layer.layer} {layer.status.value}: {layer.because}")


def _demand_settled(folded: Any, options: FoldOptions, report: FoldReport) -> None:
    again, late = frontend.fold_model(folded, options)
    if names := [outcome.site.name for outcome in late.outcomes if outcome.folded]:
        raise Wrong(f"folding again folds {', '.join(names)}")
    if frontend.to_bytes(again) != frontend.to_bytes(folded):
        raise Wrong("folding again changes the model")
    if len(late.outcomes) > sum(not outcome.folded for outcome in report.outcomes):
        raise Wrong("there are more affines than were left")


def _demand_same_in_any_order(model: onnx.ModelProto, options: FoldOptions, report: FoldReport, seed: int) -> None:
    disguise, names = disguised(model, np.random.default_rng(seed))
    _, other = frontend.fold_model(frontend.from_proto(disguise), options)
    here = {names.get(o.site.name, o.site.name): o.folded for o in report.outcomes}
    there = {o.site.name: o.folded for o in other.outcomes}
    if changed := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        raise Wrong(f"in another order or by other names another outcome: {', '.join(changed)}")


def disguised(model: onnx.ModelProto, random: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model under other names and in another topological order, and the new name of each old one."""
    other = onnx.ModelProto.FromString(model.SerializeToString())
    graph = other.graph
    fixed = {port.name for port in (*graph.input, *graph.output)}
    made = [name for node in _nodes(other, functions=False) for name in (*node.output, node.name)]
    names = sorted({*made, *(tensor.name for tensor in graph.initializer)} - fixed - {""})
    renamed = {name: f"n{number}" for name, number in zip(names, random.permutation(len(names)), strict=True)}
    _rename(graph, renamed)
    nodes, ready = list(graph.node), {""} | {each.name for each in (*graph.input, *graph.initializer)}
    del graph.node[:]
    while nodes:
        free = [node for node in nodes if _reads(node) <= ready]
        node = free[int(random.integers(len(free)))]
        nodes.remove(node)
        graph.node.append(node)
        ready |= set(node.output)
    return other, renamed


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for each in (*graph.initializer, *graph.value_info, *graph.output):
        each.name = names.get(each.name, each.name)
    for node in graph.node:
        node.name = names.get(node.name, node.name)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in _bodies(node):
            _rename(body, names)


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node needs before it can run, captured values too."""
    inside = {name for body in _bodies(node) for each in body.node for name in _reads(each)}
    inside |= {output.name for body in _bodies(node) for output in body.output}
    own = {tensor.name for body in _bodies(node) for tensor in body.initializer}
    return set(node.input) | (inside - own - {name for body in _bodies(node) for n in body.node for name in n.output})


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _nodes(model: onnx.ModelProto, functions: bool = True) -> Iterator[onnx.NodeProto]:
    waiting = [*model.graph.node, *(node for function in model.functions if functions for node in function.node)]
    for node in waiting:
        yield node
        waiting.extend(inner for body in _bodies(node) for inner in body.node)


def computing(model: onnx.ModelProto) -> int:
    """How many nodes compute something from what is given at run time."""
    constant = {tensor.name for tensor in model.graph.initializer} - {port.name for port in model.graph.input}
    constant |= {tensor.name for node in _nodes(model) for body in _bodies(node) for tensor in body.initializer}
    count = 0
    for node in _nodes(model):
        if node.op_type in ("Constant", "Shape") or (node.input and set(node.input) <= constant | {""}):
            constant |= set(node.output)
        else:
            count += 1
    return count


def check_model(model: onnx.ModelProto) -> None:
    """Let onnx's checker look at a model; it wants a rank for every input, which bnfold does not."""
    outline = onnx.ModelProto.FromString(model.SerializeToString())
    for port in outline.graph.input:
        port.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(outline)
    except onnx.checker.ValidationError as error:
        raise Wrong(f"invalid: {str(error).splitlines()[0]}") from error


def _runs(model: onnx.ModelProto, drawn: Drawn) -> bool:
    """Whether the runtime loads and runs it; some of what it cannot run it sees when it loads, if it is a constant."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {port.name: drawn.feeds[0][port.name] for port in session.get_inputs()}
        session.run(
            None, {name: each if each.dtype == bool else each.astype(np.float32) for name, each in feed.items()}
        )
    except Exception:  # of classes that the runtime does not export
        return False
    return True


def check(drawn: Drawn, seed: int, tally: Models) -> str | None:
    """What is wrong with the fold of a model."""
    try:
        with np.errstate(all="ignore"):
            examine(drawn, seed, tally)
    except Wrong as wrong:
        return str(wrong)
    except Exception as error:  # a crash of any class is a finding
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
    return None


def check_many(seeds: Iterable[int], dialect: str = "onnx") -> Models:
    """Draw and check the models of these seeds; there is one dialect."""
    tally = Models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mean of nothing, where other sizes do not fit the model
        for seed in seeds:
            try:
                drawn = draw(seed)
                check_model(drawn.model)
            except (Undrawable, Wrong):
                tally.counts["discarded"] += 1
                continue
            tally.counts["checked"] += 1
            if found := check(drawn, seed, tally):
                tally.wrong.append(f"seed {seed}: {found}")
    return tally


def shrunk(drawn: Drawn, seed: int) -> Drawn:
    """The same finding in fewer nodes: outputs are dropped, values made outputs, nodes that keep a shape taken out."""
    found = check(drawn, seed, Models())
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(drawn.model):
            attempt = Drawn(candidate, drawn.feeds)
            if _kind(check(attempt, seed, Models())) == _kind(found) and references(attempt):
                drawn, smaller = attempt, True
                break
    return drawn


def _kind(found: str | None) -> str | None:
    return found and " ".join(word for word in found.split() if word.isalpha())


def _smaller(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    for index in range(len(model.graph.output) if len(model.graph.output) > 1 else 0):
        other = onnx.ModelProto.FromString(model.SerializeToString())
        del other.graph.output[index]
        yield without_dead(other)
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            other = onnx.ModelProto.FromString(model.SerializeToString())
            _rename(other.graph, {node.output[0]: name})
            del other.graph.node[index]
            outputs = [port.name for port in other.graph.output]
            if len(set(outputs)) == len(outputs) and not set(outputs) & {p.name for p in other.graph.input}:
                yield without_dead(other)


def without_dead(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes and stored tensors that nothing reads."""
    graph = model.graph
    needed = {port.name for port in graph.output}
    for node in reversed(list(graph.node)):
        if needed & set(node.output):
            needed |= _reads(node)
        else:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]
    return model


# planted faults


def _no_refusal(self: Any, *_: Any) -> None:
    return None


_CONCAT, _SPLIT, _DIGIT = travel.Concat.upstream, travel.Split.downstream, travel._digit


def _wrong_slices(self: travel.Concat, port: int, affine: ChannelAffine) -> Any:
    asked = _CONCAT(self, port, affine)
    return asked if affine.axis != self.axis or not isinstance(asked, travel.Asked) else _reversed(asked, affine, self)


def _reversed(asked: travel.Asked, affine: ChannelAffine, concat: travel.Concat) -> Any:
    sizes = [size for size in concat.sizes if isinstance(size, int)]
    return travel.Asked(tuple(affine.take(np.arange(size), concat.axis) for size in sizes))


def _to_all_terms(self: travel.Sum, port: int, affine: ChannelAffine) -> Any:
    each = [travel._on_operand(affine, self.shapes, term) for term in range(len(self.signs))]
    return next((e for e in each if not isinstance(e, ChannelAffine)), None) or travel.Asked(tuple(each))


def _wrong_pieces(self: travel.Split, affines: Any) -> Any:
    made = _SPLIT(self, affines)
    if not isinstance(made, tuple) or self.picks is None or affines[0] is None or affines[0].axis != self.axis:
        return made
    picks = [np.arange(len(picked)) for picked in self.picks]
    return tuple(affines[0].take(picked, None if self.dropped else self.axis) for picked in picks)


def _unchecked_digit(affine: Any, channels: int, place: tuple[int, int], size: int, axis: int) -> Any:
    moved = _DIGIT(affine, channels, place, size, axis)
    return affine.take(np.arange(size) % channels, axis) if moved is travel.Reason.CHANNELS_MIXED else moved


FAULTS: dict[str, Fault] = {
    "ReLU, pools and padding let everything pass": (travel.Same, "_refusal", _no_refusal),
    "other readers not asked": (rules, "_seen_by_others", lambda *_: None),
    "every other reader is blind": (rules, "_blind", lambda *_: True),
    "Concat gives every input the first channels": (travel.Concat, "upstream", _wrong_slices),
    "Split gives every piece the first channels": (travel.Split, "downstream", _wrong_pieces),
    "a sum gives the shift to every term": (travel.Sum, "upstream", _to_all_terms),
    "signs of a difference forgotten": (ChannelAffine, "opposite", lambda self: self),
    "scales of terms not compared": (travel, "_equal_scales", lambda *_: True),
    "a shift passes a gate": (travel.Gate, "_refusal", _no_refusal),
    "Reshape does not compare digits": (travel, "_digit", _unchecked_digit),
    "Transpose does not move the axis": (
        travel.Permute,
        "upstream",
        lambda self, port, affine: travel.Asked((affine,)),
    ),
    "a shift crosses zero padding": (lenses, "_pads", lambda *_: False),
    "ConvTranspose has no border": (lenses, "_spreads", lambda *_: False),
    "affines composed the wrong way round": (rules, "compose", lambda second, first: first @ second),
    "readers behind a vanished affine forgotten": (
        folding.Plan,
        "uses",
        lambda self, value: [
            use for use in self.graph.uses(value) if not (isinstance(use, tuple) and use[0] in self.gone)
        ],
    ),
}


CAMPAIGN = Campaign(FAULTS, check_many, dialects=("onnx",))


def _show(seed: int, dialect: str) -> None:
    """Print the model of a seed, made small if its fold is wrong, and what became of its affines."""
    drawn = draw(seed)
    if found := check(drawn, seed, Models()):
        drawn = shrunk(drawn, seed)
        print(f"seed {seed}: {found}, made small: {check(drawn, seed, Models())}")
    print(onnx.printer.to_text(drawn.model))
    with np.errstate(all="ignore"):
        _, report = frontend.fold_model(
            frontend.from_proto(drawn.model), FoldOptions(max_growth=1.1 if seed % 2 else 1e9)
        )
    for outcome in report.outcomes:
        way = " via " * bool(outcome.via) + " ".join(site.name for site in outcome.via)
        into = " ".join(site.name for site in outcome.into)
        print(outcome.site.name, outcome.refusal or f"into {into}{way}")


if __name__ == "__main__":
    sys.exit(CAMPAIGN.main(__doc__, _show))

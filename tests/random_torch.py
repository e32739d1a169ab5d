"""Random torch graphs, folded: never another result, never a crash.

    python tests/random_torch.py --count 20000 --seed 0 --jobs 2            all dialects: some 12 minutes
    python tests/random_torch.py --count 300 --dialect program              one dialect
    python tests/random_torch.py --seed 4711 --count 1 --show               one graph, printed
    python tests/random_torch.py --faults --count 600                       plant each fault, until it is found

A graph is folded as a program recorded from a run (`recorded`), as a GraphModule without and with example inputs
(`module`, `examples`), or as torch exports it (`program`), and executed in float64 as it was built and as it was
folded, on inputs of every size that it takes. Beyond equal results: the caller's model keeps every bit, every batch
norm has an outcome, folding again folds nothing, no operator is added, and what is written (inputs, buffers) is written
all the same.
"""

from __future__ import annotations

import copy
import hashlib
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from random_harness import Campaign, Fault, Tally, Wrong
from random_torch_graphs import Drawn, draw
from random_torch_recording import Called, Recording
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

import bnfold
from bnfold import folding, rules, travel
from bnfold.algebra import ChannelAffine
from bnfold.errors import BnfoldError
from bnfold.frontends.torch import graph as torch_graph
from bnfold.frontends.torch import lenses
from bnfold.outcome import FoldReport

TOLERANCE = 1e-9
ROUNDINGS = 2000
"""How many roundings of the coarsest float type in the graph may add up."""
MAGNIFIED = 16
"""How often as far as one rounding moves them may the outputs differ, where a graph magnifies roundings: `c / x`."""


@dataclass
class Graphs(Tally):
    """What became of many graphs."""

    rules: Counter[str] = field(default_factory=Counter)
    crossed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    TITLES = {"counts": "graphs", "rules": "folds", "crossed": "crossed", "reasons": "left"}  # noqa: RUF012

    def note(self, report: FoldReport) -> None:
        """Count the outcomes of one fold."""
        for outcome in report.outcomes:
            kind = "norm" if outcome.is_norm else "affine"
            if outcome.refusal is not None:
                self.reasons[f"{kind} {outcome.refusal.reason.code}"] += 1
                continue
            way = "via" if outcome.via else "straight" if outcome.into else "vanished"
            self.rules[f"{kind} {outcome.rule} {way}"] += 1
            self.crossed.update({site.op for site in outcome.via})


# execution


@dataclass(frozen=True)
class Ran:
    """What a call gave, and what it wrote: its inputs afterwards, and the stored tensors that it changed."""

    outputs: list[Any]
    inputs: list[Tensor]
    state: dict[str, Tensor]
    names: frozenset[str]


def run(module: Any, inputs: Iterable[Tensor]) -> Ran:
    """Call the module; its stored tensors are as they were when this returns."""
    stored = dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))
    before = {name: tensor.detach().clone() for name, tensor in stored.items()}
    given = [each.clone() for each in inputs]
    with torch.no_grad():
        try:
            made = module.forward(*given)  # a call would print what goes wrong
            outputs = [each.clone() if isinstance(each, Tensor) else each for each in pytree.tree_leaves(made)]
            changed = {name: t.detach().clone() for name, t in stored.items() if not torch.equal(t, before[name])}
        finally:
            for name, tensor in stored.items():
                tensor.copy_(before[name])
    return Ran(outputs, given, changed, frozenset(stored))


def compare(before: Ran, after: Ran, drawn: Drawn, *, same_type: bool = True) -> None:
    """Raise `Wrong` where two runs differ by more than rounding, relative to the largest value of the graph."""
    limit = max(TOLERANCE, ROUNDINGS * torch.finfo(drawn.lowest).eps)
    scale = max([drawn.magnitude, *(_largest(each) for each in before.outputs)])
    written = before.state.keys() & after.names
    if (
        len(before.outputs) != len(after.outputs)
        or written != after.state.keys()
        or bool(written) != bool(before.state)
    ):
        raise Wrong("other outputs, or other stored tensors are written")
    pairs = [*zip(before.outputs, after.outputs, strict=True), *zip(before.inputs, after.inputs, strict=True)]
    for one, other in [*pairs, *((before.state[name], after.state[name]) for name in written)]:
        if one.shape != other.shape or (same_type and one.dtype != other.dtype):
            raise Wrong(f"{tuple(one.shape)} {one.dtype} became {tuple(other.shape)} {other.dtype}")
        error = _largest(one.double() - other.double())
        if not error <= limit * scale and not error <= MAGNIFIED * _moved_by_rounding(drawn):
            raise Wrong(f"differs by {error:.3g} of {scale:.3g}")


def _moved_by_rounding(drawn: Drawn) -> float:
    """How far the outputs of the graph as built move when all that it stores and reads is one rounding away, on any of
    its inputs; no more than a thousandth of their size, or nothing would be wrong."""
    random, moved = torch.Generator().manual_seed(0), copy.deepcopy(drawn.module)

    def one_rounding_away(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=random) * 2 - 1
        return tensor * (1 + signs * torch.finfo(drawn.lowest).eps).to(tensor.dtype)

    with torch.no_grad():
        for tensor in (*moved.parameters(), *moved.buffers()):
            tensor.copy_(one_rounding_away(tensor))
    distances = [0.0]
    for inputs in drawn.inputs:
        here, there = _possible(drawn.module, inputs), _possible(moved, [one_rounding_away(each) for each in inputs])
        if here and there:
            pairs = zip(here.outputs, there.outputs, strict=True)
            distance = max(_largest(one.double() - other.double()) for one, other in pairs)
            distances.append(min(distance, 1e-3 * max(map(_largest, here.outputs))))
    return max(distances)


def _largest(tensor: Tensor) -> float:
    return tensor.double().abs().max().item() if tensor.numel() else 0.0


# one graph


def check_recorded(drawn: Drawn, tally: Graphs) -> None:
    """Fold the program that a run of the graph is; raise `Wrong` where that does harm."""
    recording = Recording(drawn.module)
    run(recording, drawn.inputs[0])
    reference = run(Called(recording.program), drawn.inputs[0])
    folded = _folded_program(drawn, recording.program, tally)
    compare(reference, run(Called(folded), drawn.inputs[0]), drawn)


def check_module(drawn: Drawn, tally: Graphs) -> None:
    """Fold the GraphModule without example inputs; raise `Wrong` where that does harm."""
    _check_graph_module(drawn, tally, None)


def check_examples(drawn: Drawn, tally: Graphs) -> None:
    """Fold the GraphModule with example inputs; raise `Wrong` where that does harm."""
    _check_graph_module(drawn, tally, drawn.inputs[0])


def _check_graph_module(drawn: Drawn, tally: Graphs, examples: tuple[Tensor, ...] | None) -> None:
    references = [(inputs, ran) for inputs in drawn.inputs if (ran := _possible(drawn.module, inputs))]
    fingerprint = _fingerprint(drawn.module)
    folded = bnfold.fold(drawn.module, examples)
    if _fingerprint(drawn.module) != fingerprint or _shares_memory(drawn.module, folded.model):
        raise Wrong("the caller's module changed, or shares memory with the result")
    _demand_order(drawn, folded, _calls(drawn.module.graph), _calls(folded.model.graph))
    for inputs, reference in references:
        compare(reference, run(folded.model, inputs), drawn)
    _demand_settled(bnfold.fold(folded.model, examples))
    tally.note(folded.report)
    if drawn.lowest is torch.float32:
        _compare_with_double(drawn, folded.model, tally)


def _compare_with_double(drawn: Drawn, folded: fx.GraphModule, tally: Graphs) -> None:
    """A float32 graph against the same in float64, unless that is another function: a cast to float32 copies only
    doubles, and what is written into a copy is not seen elsewhere."""
    doubled = copy.deepcopy(drawn.module).double()
    if exact := _possible(doubled, [each.double() for each in drawn.inputs[0]]):
        try:
            compare(_outputs_alone(exact), _outputs_alone(run(drawn.module, drawn.inputs[0])), drawn, same_type=False)
        except Wrong:
            tally.counts["another function in double"] += 1
            return
        ran = run(folded, drawn.inputs[0])
        compare(_outputs_alone(exact), _outputs_alone(ran), drawn, same_type=False)


def _outputs_alone(ran: Ran) -> Ran:
    """What is written is compared in its own type elsewhere."""
    return Ran(ran.outputs, [], {}, frozenset())


def check_program(drawn: Drawn, tally: Graphs) -> None:
    """Fold the exported program; raise `Wrong` where that does harm."""
    program = exported(drawn)
    if program is None:
        tally.counts["not exportable"] += 1
        return
    stored: Callable[[ExportedProgram], ExportedProgram] = _reloaded if drawn.seed % 4 == 0 else lambda same: same
    module = stored(program).module()  # a program that was stored may take fewer sizes
    references = [(inputs, ran) for inputs in drawn.inputs if (ran := _possible(module, inputs))]
    folded = _folded_program(drawn, program, tally)
    called = stored(folded).module()
    for inputs, reference in references:
        compare(reference, run(called, inputs), drawn)


def _folded_program(drawn: Drawn, program: ExportedProgram, tally: Graphs) -> ExportedProgram:
    fingerprint = _fingerprint(program)
    folded = bnfold.fold(program)
    if _fingerprint(program) != fingerprint:
        raise Wrong("the caller's program changed")
    _demand_order(drawn, folded, _calls(program.graph), _calls(folded.model.graph))
    _demand_settled(bnfold.fold(folded.model))
    tally.note(folded.report)
    return folded.model


def exported(drawn: Drawn) -> ExportedProgram | None:
    """The program of the graph: fixed sizes, a dynamic batch, all dynamic, or decomposed; None if torch fails."""
    axes: dict[int, Any] = {0: Dim.AUTO} if drawn.seed % 3 else dict.fromkeys(range(drawn.inputs[0][0].dim()), Dim.AUTO)
    shapes = None if drawn.seed % 4 == 1 else tuple(axes for _ in drawn.inputs[0])
    inputs = tuple(each.clone() for each in drawn.inputs[0])
    try:
        with torch.no_grad():
            program = torch.export.export(copy.deepcopy(drawn.module), inputs, dynamic_shapes=shapes, strict=False)
            return program.run_decompositions() if drawn.seed % 8 == 2 else program
    except Exception:  # whatever torch cannot export is not what is tested
        return None


def _reloaded(program: ExportedProgram) -> ExportedProgram:
    memory = io.BytesIO()
    torch.export.save(program, memory)
    memory.seek(0)
    return torch.export.load(memory)


def _possible(module: Any, inputs: Iterable[Tensor]) -> Ran | None:
    """The run, if the graph as built takes inputs of these sizes and gives numbers."""
    try:
        ran = run(module, inputs)
    except Exception:  # of any class: only that it does not run matters
        return None
    return ran if all(_is_finite(each) for each in (*ran.outputs, *ran.state.values())) else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isfinite().all())


def _calls(graph: fx.Graph) -> int:
    return sum(node.op.startswith("call") for node in graph.nodes)


def _demand_order(drawn: Drawn, folded: Any, before: int, after: int) -> None:
    if after > before:
        raise Wrong(f"{before} calls became {after}")
    dead = isinstance(folded.model, ExportedProgram)
    if len(folded.report.norms) < drawn.norms and not dead:
        raise Wrong(f"{len(folded.report.norms)} outcomes for {drawn.norms} batch norms")


def _demand_settled(again: Any) -> None:
    if late := [outcome.site.name for outcome in again.report.outcomes if outcome.folded]:
        raise Wrong(f"folding again folds {', '.join(late)}")


def _fingerprint(model: Any) -> tuple[str, str]:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items() if callable(model.state_dict) else model.state_dict.items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return str(model.graph), digest.hexdigest()


def _shares_memory(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    places = [{t.data_ptr() for t in (*m.parameters(), *m.buffers()) if t.numel()} for m in (one, other)]
    return bool(places[0] & places[1])


CHECKS = {
    "recorded": check_recorded,
    "module": check_module,
    "examples": check_examples,
    "program": check_program,
}
# How many of a hundred graphs are folded in each dialect: in the inverse order of what it costs.
SHARES = {"program": 2, "examples": 6, "module": 12, "recorded": 80}
MIX = [dialect for dialect, share in SHARES.items() for _ in range(share)]


def check(seed: int, dialect: str, tally: Graphs) -> str | None:
    """Draw and check the graph of one seed; what is wrong with its fold."""
    drawn = draw(seed)
    if drawn is None or _possible(drawn.module, drawn.inputs[0]) is None:
        tally.counts["discarded"] += 1
        return None
    if dialect == "mixed":
        dialect = MIX[seed % len(MIX)]
    tally.counts[dialect] += 1
    try:
        CHECKS[dialect](drawn, tally)
    except Wrong as wrong:
        return str(wrong)
    except BnfoldError as error:
        tally.counts[f"refused: {error.code}"] += 1
        return f"{type(error).__name__} {error.code}: {error}" if error.code in ("usage", "internal") else None
    except Exception as error:  # a crash of any class is a finding
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    return None


def check_many(seeds: Iterable[int], dialect: str) -> Graphs:
    """Check the graphs of these seeds."""
    torch.set_num_threads(1)
    tally = Graphs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            if found := check(seed, dialect, tally):
                tally.wrong.append(f"seed {seed}: {found}")
    return tally


# planted faults


def _no_refusal(self: Any, *_: Any) -> None:
    return None


def _off_by_one(self: travel.Concat, port: int, affine: ChannelAffine) -> Any:
    asked = _CONCAT(self, port, affine)
    return asked if affine.axis != self.axis or not hasattr(asked, "every") else travel.Asked(asked.every[::-1])


def _to_all_terms(self: travel.Sum, port: int, affine: ChannelAffine) -> Any:
    each = [travel._on_operand(affine, self.shapes, term) for term in range(len(self.signs))]
    return next((e for e in each if not isinstance(e, ChannelAffine)), None) or travel.Asked(tuple(each))


def _next_channels(self: travel.Split, affines: Any) -> Any:
    made = _SPLIT(self, affines)
    return made[::-1] if isinstance(made, tuple) and self.picks is not None else made


_CONCAT, _SPLIT, _DIGIT = travel.Concat.upstream, travel.Split.downstream, travel._digit


def _unchecked_digit(affine: Any, channels: int, place: tuple[int, int], size: int, axis: int) -> Any:
    moved = _DIGIT(affine, channels, place, size, axis)
    return affine.take(np.arange(size) % channels, axis) if moved is travel.Reason.CHANNELS_MIXED else moved


FAULTS: dict[str, Fault] = {
    "relu, pools and padding let everything pass": (travel.Same, "_refusal", _no_refusal),
    "other readers not asked": (rules, "_seen_by_others", lambda *_: None),
    "every reader is blind": (rules, "_blind", lambda *_: True),
    "cat hands its slices to the wrong inputs": (travel.Concat, "upstream", _off_by_one),
    "split hands its slices to the wrong pieces": (travel.Split, "downstream", _next_channels),
    "a sum gives the shift to every term": (travel.Sum, "upstream", _to_all_terms),
    "signs of a difference forgotten": (ChannelAffine, "opposite", lambda self: self),
    "scales of terms not compared": (travel, "_equal_scales", lambda *_: True),
    "a shift passes a gate": (travel.Gate, "_refusal", _no_refusal),
    "reshape does not compare digits": (travel, "_digit", _unchecked_digit),
    "permute does not move the axis": (travel.Permute, "upstream", lambda self, port, affine: travel.Asked((affine,))),
    "a shift crosses zero padding": (lenses, "_pads", lambda *_: False),
    "transposed convolutions have no border": (lenses, "_spreads", lambda *_: False),
    "affines composed the wrong way round": (rules, "compose", lambda second, first: first @ second),
    "writes and views not looked at": (torch_graph, "mutated", lambda *_: frozenset()),
    "written state not looked at": (torch_graph, "written_state", lambda *_: frozenset()),
    "readers behind a vanished affine forgotten": (
        folding.Plan,
        "uses",
        lambda self, value: [u for u in self.graph.uses(value) if not isinstance(u, tuple) or u[0] not in self.gone],
    ),
}

# Only a GraphModule calls modules.
ONLY_IN = {"written state not looked at": "examples"}


CAMPAIGN = Campaign(FAULTS, check_many, tuple(CHECKS), fault_dialect="recorded", only_in=ONLY_IN)


def _show(seed: int, dialect: str) -> None:
    print(drawn.module.code if (drawn := draw(seed)) else f"seed {seed}: nothing")


if __name__ == "__main__":
    sys.exit(CAMPAIGN.main(__doc__, _show))

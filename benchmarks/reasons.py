"""Reasons are true: for every batch norm that is left, take away what it blames, and it folds.

    python benchmarks/reasons.py --cache zoo                        the zoo and ten more architectures
    python benchmarks/reasons.py --cache zoo --draw 10 --seed 7     drawn by another seed
    python benchmarks/reasons.py --cache zoo --models densenet121 --draw 0

The named blocker becomes an Identity of an input through which the affine would come (of as many of its places as the
blocker makes, where that is fewer), or, if it is a convolution with padding, loses that; a reader that is in the way
(`shared-output`) becomes the constant 1, in its shape.
Where the refusal names further nodes, they go too. Then the batch norm of that name must fold. What folded already has
folded: the change is made to the folded network. Exit code 1 if one does not. What is needed is said in `zoo.py`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

import numpy as np
import onnx_ir as ir
from zoo import HERE, MODELS, Failed, answer, process

import bnfold
from bnfold.outcome import FoldReport, Outcome

# A blocker does not say by which input it is crossed; all that it can be is tried.
TRIALS_AT_MOST = 24
BARE = -1


@dataclass(frozen=True)
class Cut:
    """One change: the node becomes an Identity of input `port`, or, where that is None, no longer reads, or, where it
    is `BARE`, pads no longer."""

    node: str
    port: int | None


@dataclass
class Tally:
    """What was found in one model."""

    model: str
    norms: int
    single: int = 0
    several: int = 0
    unnamed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        left = self.single + self.several + len(self.unnamed)
        kinds = f"{self.single} with one blocker, {self.several} with several, {len(self.unnamed)} without"
        return f"{self.model}: {left} of {self.norms} left ({kinds}), {len(self.failures)} not true"


class Trials:
    """Folds of one model with something cut out, each done once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = by_name(model)

    def outcome(self, name: str, cuts: Iterable[Cut]) -> str | None:
        """Why the batch norm still does not fold after these cuts; None if it does. Alone first, which is quicker."""
        still = self._fold(name, frozenset(cuts), include=(name,))
        return still and self._fold(name, frozenset(cuts), include=())

    def _fold(self, name: str, cuts: frozenset[Cut], include: tuple[str, ...]) -> str | None:
        try:
            report: FoldReport = bnfold.fold(cut(self.model, cuts), include=include).report
        except bnfold.BnfoldError as error:
            return str(error)
        outcome = next(each for each in report.outcomes if each.site.name == name)
        return outcome.refusal and f"{outcome.refusal.reason.code} {blockers(outcome)}"

    def ways(self, outcome: Outcome) -> Iterator[tuple[Cut, ...]]:
        """The cuts that a refusal may mean, the likeliest first."""
        norm, readers = self.nodes[outcome.site.name], outcome.refusal.readers if outcome.refusal else ()
        choices = ([Cut(name, None)] if name in readers else self._crossed(name, norm) for name in blockers(outcome))
        return islice(product(*choices), TRIALS_AT_MOST)

    def _crossed(self, name: str, norm: ir.Node) -> list[Cut]:
        """The node as an Identity of each input that comes from the batch norm; if none does, of each that runs."""
        node = self.nodes[name]
        running = [port for port, value in enumerate(node.inputs) if value is not None and value.const_value is None]
        below = [port for port in running if norm in ancestors(node.inputs[port])]
        bare = [Cut(name, BARE)] * ("pads" in node.attributes or "auto_pad" in node.attributes)
        return [*bare, *(Cut(name, port) for port in below or running)]


def by_name(model: ir.Model) -> dict[str, ir.Node]:
    """Nodes by the names that a report uses: their own, or that of their first output."""
    return {name: node for node in model.graph for name in (node.outputs[0].name, node.name) if name}


def ancestors(value: ir.Value | None) -> set[ir.Node]:
    """Every node on which the value depends."""
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        maker = None if current is None else current.producer()
        if maker is not None and maker not in found:
            found.add(maker)
            waiting += maker.inputs
    return found


def cut(model: ir.Model, cuts: Iterable[Cut]) -> ir.Model:
    """A copy of the model with these nodes gone."""
    changed = model.clone()
    nodes = by_name(changed)
    for each in cuts:
        node = nodes[each.node]
        if each.port == BARE:
            for name in ("pads", "auto_pad"):
                node.attributes.pop(name, None)
            continue
        for index, value in enumerate(node.outputs):
            replacement = one(changed, value) if each.port is None or index else wire(node, each.port)
            value.replace_all_uses_with(replacement, replace_graph_outputs=True)
        changed.graph.remove(node, safe=True)
    return changed


def wire(node: ir.Node, port: int) -> ir.Value:
    """The output of a new Identity in front of the node, or of a Slice of as many places as the node makes."""
    given, made = node.inputs[port], node.outputs[0]
    assert given is not None, "a port that was chosen has a value"
    steps = fewer(given.shape, made.shape)
    columns = zip(*((0, step * (count - 1) + 1, axis, step) for axis, step, count in steps), strict=True)
    model = node.graph
    assert model is not None, "a node of the model is in its graph"
    parameters = [stored(model, f"{made.name}.cut{i}", np.array(each)) for i, each in enumerate(columns)]
    wired = ir.Node("", "Slice" if steps else "Identity", [given, *parameters], name=f"{node.name}.cut")
    wired.outputs[0].name = f"{made.name}.cut"
    model.insert_before(node, wired)
    return wired.outputs[0]


def fewer(before: ir.Shape | None, after: ir.Shape | None) -> list[tuple[int, int, int]]:
    """The axes along which fewer places are made than are given: each with the step between them and their number."""
    if before is None or after is None or len(before) != len(after):
        return []
    sizes = [(axis, b, a) for axis, (b, a) in enumerate(zip(before, after, strict=True)) if b != a]
    known = [(axis, b, a) for axis, b, a in sizes if isinstance(b, int) and isinstance(a, int) and a < b]
    return [(axis, (b - 1) // (a - 1) if a > 1 else b, a) for axis, b, a in known]


def one(model: ir.Model, value: ir.Value) -> ir.Value:
    """A stored 1 of the value's type and shape; a size that is not known is 1 and broadcasts."""
    dtype = value.dtype or ir.DataType.FLOAT
    shape = [size if isinstance(size, int) else 1 for size in value.shape or ()]
    return stored(model.graph, f"{value.name}.cut", np.ones(shape, dtype=dtype.numpy()))


def stored(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer."""
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    graph.initializers[name] = value
    return value


def blockers(outcome: Outcome) -> list[str]:
    refusal = outcome.refusal
    return [name for name in (refusal.blocker, *refusal.also) if name] if refusal else []


def examine(name: str, path: Path) -> Tally:
    """Fold one network, and question each reason that is given."""
    model = bnfold.load(path)
    folded = bnfold.fold(model)
    trials, report = Trials(folded.model), folded.report
    tally = Tally(name, len(report.norms))
    for outcome in report.norms:
        if outcome.refusal is not None:
            question(outcome, trials, tally)
    return tally


def question(outcome: Outcome, trials: Trials, tally: Tally) -> None:
    named, code = blockers(outcome), outcome.refusal and outcome.refusal.reason.code
    if not named:
        tally.unnamed.append(f"{outcome.site.name}  {code}")
        return
    tally.single += len(named) == 1
    tally.several += len(named) > 1
    answers = []
    for way in trials.ways(outcome):
        still = trials.outcome(outcome.site.name, way)
        if still is None:
            return
        answers.append(still)
    after = answers[0] if answers else "nothing to cut"
    tally.failures.append(f"{outcome.site.name}  {code}  {' + '.join(named)}  then: {after}")


def networks(options: argparse.Namespace) -> Iterator[str]:
    """The named models, then architectures drawn by seed until enough of them can be built."""
    for name in options.models:
        if (reason := unbuildable(name, options.cache)) is None:
            yield name
        else:
            print(f"cannot be built: {name}: {reason}", flush=True)
    built = 0
    passed_over: dict[str, list[str]] = {}
    for name, known in drawn(options) if options.draw else ():
        if built == options.draw:
            break
        reason = "it is in the zoo" if name in MODELS else known or unbuildable(name, options.cache)
        if reason is not None:
            passed_over.setdefault(reason, []).append(name)
        else:
            built += 1
            yield name
    for reason, names in passed_over.items():
        print(f"passed over, {reason}: {', '.join(names)}", flush=True)


def drawn(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Names in the order of the draw, with the reason against each; it ends with the last that was usable."""
    command = [HERE / "networks.py", "--draw", str(2 * options.draw), "--seed", str(options.seed)]
    yield from answer(*command)


def unbuildable(name: str, cache: Path) -> str | None:
    try:
        process(HERE / "networks.py", name, "--cache", cache)
    except Failed as failure:
        return str(failure)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Take away what each reason blames, and fold again.")
    parser.add_argument("--cache", type=Path, help="where built networks are kept; none: a folder that is deleted")
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="NAME", help="any of timm's names")
    parser.add_argument("--draw", type=int, default=10, metavar="N", help="this many more architectures")
    parser.add_argument("--seed", type=int, default=0, help="for the draw; the networks are those of zoo.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.cache = options.cache or Path(folder)
        tallies = []
        for name in networks(options):
            tallies.append(examine(name, options.cache / f"{name}.onnx"))
            print("\n    ".join([str(tallies[-1]), *tallies[-1].unnamed, *tallies[-1].failures]), flush=True)
    single, several = sum(each.single for each in tallies), sum(each.several for each in tallies)
    unnamed, failures = sum(len(each.unnamed) for each in tallies), sum(len(each.failures) for each in tallies)
    print(
        f"{len(tallies)} networks: {single} + {several} reasons with a blocker, {unnamed} without, {failures} not true"
    )
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

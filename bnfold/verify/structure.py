"""What else changed? Two models node by node, and each difference that the records of a fold do not allow.

    for complaint in Structure(before, after, original, folded, report).complaints(): ...

Every node that stays must be what it was, with the same attributes, and read what it read, once the nodes are passed
that the records name: affines that were folded, operators that were merged, additions that lost all terms but one.
What is not named and does something cannot go unseen, because its readers, or the outputs, would read something else.
Weights are the affair of L1 where the records say that they changed, and must be the same bytes everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.evidence import Contents, Evidence, Held, Move, Operation, Read, Wire
from bnfold.outcome import Absorbed, Combined, FoldReport
from bnfold.verify.leftover import with_own_sums
from bnfold.verify.result import Status

Array = NDArray[Any]
Place = tuple[str, str]

FACTORS = frozenset(("alpha", "beta"))
WINDOW = frozenset(
    ("auto_pad", "kernel_shape", "strides", "dilations", "pads", "group", "stride", "padding", "dilation", "groups")
)
CHUNK = 1 << 22


@dataclass(frozen=True)
class Complaint:
    """One difference; a warning where the structure could not be followed."""

    status: Status
    because: str
    affine: str | None = None


def same_numbers(first: Array, second: Array) -> bool:
    """The same type, shape and bytes. What lies in one place is not read, and of the rest a bounded part at a time."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first is second or first.__array_interface__ == second.__array_interface__:
        return True
    flat = [np.ascontiguousarray(each).reshape(-1) for each in (first, second)]
    if first.dtype.hasobject:
        return bool(np.array_equal(flat[0], flat[1]))
    one, other = (each.view(np.uint8) for each in flat)
    return all(np.array_equal(one[i : i + CHUNK], other[i : i + CHUNK]) for i in range(0, one.size, CHUNK))


class _Lost(Exception):
    """The structure cannot be followed behind this node."""


class _Story:
    """The records, by the names of nodes: what went where."""

    def __init__(self, original: Evidence, report: FoldReport) -> None:
        self.affines = {outcome.site.name for outcome in report.outcomes if outcome.folded}
        self.lowered = {outcome.site.name: outcome.lowered_to for outcome in report.outcomes if outcome.lowered}
        merges = [each for each in report.absorbed if isinstance(each, Combined)]
        parallel = [each for each in merges if not each.serial]
        parts = [(str(term.operator), each.into) for each in parallel for term in each.terms if term.operator]
        self.moved = {name: into for name, into in parts if name != into}
        lone = [(each.into, sum(term.operator is None for term in each.terms)) for each in parallel]
        self.lone = [(into, count) for into, count in lone if count]
        self.hosts = {each.into for each in merges}
        self.serial = {str(each.terms[0].operator): each.into for each in merges if each.serial}
        absorbed = [each for each in report.absorbed if isinstance(each, Absorbed)]
        self.written = self.hosts | {each.operator for each in absorbed if each.operator}
        self.biases = {op.added: name for name, op in original.linears.items() if op.added}


class Structure:
    """The two models and the records of the fold."""

    def __init__(
        self, before: Contents, after: Contents, original: Evidence, folded: Evidence, report: FoldReport
    ) -> None:
        self.before, self.after, self.original, self.report = before, after, original, report
        self.folded = with_own_sums(original, folded, report)
        self.story = _Story(original, report)
        self._dropped: set[Place] = set()
        self._known: dict[Wire, Read] = {}
        self._copies = {name for name, op in after.operations.items() if op.copies and name not in before.operations}
        self._last = {names[-1]: name for name, names in self.story.lowered.items()}
        self._added = {op.added: name for name, op in self.folded.linears.items() if op.added}

    def complaints(self) -> Iterator[Complaint]:
        """Everything that is wrong, one after the other; a warning where a record leads nowhere."""
        yield from self._unrecorded()
        yield from self._new()
        try:
            yield from self._merged()
            for name, operation in self.before.operations.items():
                if name in self.after.operations:
                    yield from self._stays(name, operation, self.after.operations[name])
            yield from self._lowered()
            yield from self._results()
        except _Lost as lost:
            yield Complaint(Status.WARN, f"the structure cannot be followed behind {lost}")

    # What the records must say.

    def _unrecorded(self) -> Iterator[Complaint]:
        names = [outcome.site.name for outcome in self.report.outcomes]
        if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
            yield Complaint(Status.FAIL, f"{twice[0]} has more than one record", twice[0])
        for outcome in self.report.outcomes:
            name = outcome.site.name
            if name not in self.before.operations:
                yield Complaint(Status.FAIL, f"{name} has a record, but is not in the original", name)
            elif outcome.folded and not outcome.rule:
                yield Complaint(Status.FAIL, f"the record of {name} names no rule", name)
            elif outcome.folded and outcome.axis is None and (outcome.channels or 0) > 1 and outcome.into:
                yield Complaint(Status.FAIL, f"the record of {name} does not say which axis its channels are on", name)
            for crossed in outcome.via:
                if crossed.name not in self.before.operations and crossed.name not in self.before.idle:
                    yield Complaint(Status.FAIL, f"{name} went by {crossed.name}, which is not in the original", name)
        recorded = self.story.affines | self.story.lowered.keys() | self.story.biases.keys() | self.original.unread
        for name in sorted((self.original.norms.keys() | self.original.affines.keys()) - recorded):
            if name in self.before.operations and name not in self.after.operations and self._matters(name):
                yield Complaint(Status.FAIL, f"{name} is gone, and there is no record of it", name)

    def _matters(self, name: str) -> bool:
        """Whether a node that stays, or an output, read what is gone."""
        return name in self._read_by_what_stays

    @cached_property
    def _read_by_what_stays(self) -> frozenset[str]:
        staying = [op for name, op in self.before.operations.items() if name in self.after.operations]
        reads = [read for op in staying for read in op.reads.values()]
        reads += [read for results in self.before.results.values() for read in results]
        return frozenset(read.node for read in reads if isinstance(read, Wire) and not read.given)

    def _new(self) -> Iterator[Complaint]:
        made = {name for names in self.story.lowered.values() for name in names}
        for name in self.after.operations:
            linear = self._added.get(name)
            is_bias = linear is not None and linear in self.story.written
            known = name in self.before.operations or name in made or name in self._copies
            if not (known or is_bias):
                yield Complaint(Status.FAIL, f"{name} is new, and no record allows it")

    def _merged(self) -> Iterator[Complaint]:
        """Operators that became one read one value; two in a row follow each other."""
        self._drop_terms()
        for name, into in self.story.moved.items():
            pair = [self._data_of(each) for each in (name, into)]
            if None in pair or not self._are_same(*pair):
                yield Complaint(Status.FAIL, f"{name} was merged into {into}, but does not read the same value")
        for front, into in self.story.serial.items():
            behind = self.before.operations.get(into)
            if behind is None or not self._leads_to(behind, front):
                yield Complaint(Status.FAIL, f"{front} was merged into {into}, which does not read it")

    def _leads_to(self, operation: Operation, front: str) -> bool:
        read = operation.reads.get(operation.data or "")
        for _ in range(len(self.before.operations)):
            if not isinstance(read, Wire) or read.given:
                return False
            behind = self._behind(read)
            if read.node == front or self.story.biases.get(read.node) == front:
                return True
            if behind == read:
                return False
            read = behind
        return False

    def _data_of(self, name: str) -> Read:
        operation = self.before.operations.get(name)
        return None if operation is None else self._through(operation.reads.get(operation.data or ""))

    # What stays.

    def _stays(self, name: str, was: Operation, now: Operation) -> Iterator[Complaint]:
        if was.op != now.op and not (was.adds and self.story.hosts and was.op.rstrip("_") == now.op):
            yield Complaint(Status.FAIL, f"{name} is {now.op.lstrip(':')} instead of {was.op.lstrip(':')}")
            return
        free = (FACTORS if name in self.story.written else frozenset()) | (
            WINDOW if name in self.story.hosts else frozenset()
        )
        for key in sorted((was.attributes.keys() | now.attributes.keys()) - free):
            if was.attributes.get(key) != now.attributes.get(key):
                first, second = (each.attributes.get(key, "not given") for each in (was, now))
                yield Complaint(Status.FAIL, f"the attribute {key} of {name} is {second} instead of {first}")
        if was.outputs != now.outputs:
            yield Complaint(Status.FAIL, f"{name} has {now.outputs} outputs instead of {was.outputs}")
        dropped = [port for port in was.reads if (name, port) in self._dropped]
        kept = {port: read for port, read in was.reads.items() if port not in dropped}
        if dropped:
            kept = dict(zip(now.reads, kept.values(), strict=False))
        for port in dict.fromkeys((*kept, *now.reads)):
            yield from self._reads(name, port, was, kept.get(port), now.reads.get(port))

    def _reads(self, name: str, port: str, operation: Operation, first: Read, second: Read) -> Iterator[Complaint]:
        linear = self._added.get(name) or self.story.biases.get(name, name)
        is_parameter = operation.data is not None and port != operation.data
        derived = linear in self.original.linears and linear in self.folded.linears
        if is_parameter and derived and (linear in self.story.written or not isinstance(first, Held)):
            return  # L1 derives it, or compares what it computes
        if name in self._weights and isinstance(first, Held) and isinstance(second, Held):
            return  # L1 derives what is computed from it
        same = self._are_same(self._through(first), self._now(second))
        given = isinstance(first, Wire) and first.given
        computed = not given and not isinstance(first, Held) and name not in self.original.affines
        if not same and is_parameter and not derived and (linear in self.story.written or computed):
            yield Complaint(Status.WARN, f"the parameters of {name} are not known, so nothing is said of them here")
            return
        if not same and isinstance(first, Held) and isinstance(second, Held):
            yield Complaint(Status.FAIL, f"a constant that {name} reads changed: {first.name or second.name}")
        elif not same:
            found, wanted = (words(each) for each in (self._now(second), self._through(first)))
            yield Complaint(Status.FAIL, f"{name} reads {found} instead of {wanted}")

    @cached_property
    def _weights(self) -> frozenset[str]:
        """What is computed from stored tensors alone, for operators alone that the records say were written."""
        fixed: set[str] = set()
        readers: dict[str, list[Place]] = {}
        for name, operation in self.after.operations.items():
            wires = [(port, read) for port, read in operation.reads.items() if isinstance(read, Wire)]
            if operation.reads and all(not read.given and read.node in fixed for _, read in wires):
                fixed.add(name)
            for port, read in wires:
                readers.setdefault(read.node, []).append((name, port))
        given = {read.node for results in self.after.results.values() for read in results if isinstance(read, Wire)}
        fixed, found = fixed - given, set[str]()
        for name in reversed(list(self.after.operations)):
            if name in fixed and all(r in found or self._is_weight(r, port) for r, port in readers.get(name, ())):
                found.add(name)
        return frozenset(found & readers.keys())

    def _is_weight(self, name: str, port: str) -> bool:
        written = name in self.story.written and name in self.original.linears and name in self.folded.linears
        return written and port != self.after.operations[name].data

    def _lowered(self) -> Iterator[Complaint]:
        """What a batch norm became reads what the batch norm read, one node behind the other."""
        for name, made in self.story.lowered.items():
            was = self.before.operations.get(name)
            expected: Read = None if was is None else self._through(was.reads.get(was.data or ""))
            for each in made:
                now = self.after.operations.get(each)
                read = None if now is None or now.data is None else now.reads[now.data]
                found = read if read == expected else self._now(read)
                if now is None or not self._are_same(expected, found):
                    yield Complaint(Status.FAIL, f"{name} became {each}, which does not read what {name} read", name)
                    break
                expected = Wire(each)

    def _results(self) -> Iterator[Complaint]:
        if self.before.results.keys() != self.after.results.keys():
            other = sorted(self.before.results.keys() ^ self.after.results.keys())
            yield Complaint(Status.FAIL, f"the body {other[0]} is only in one of the models")
            return
        for scope, results in self.before.results.items():
            now = self.after.results[scope]
            for number, (first, second) in enumerate(zip(results, now, strict=False)):
                if not self._are_same(self._through(first), self._now(second)):
                    where = f" of {scope}" if scope else ""
                    found, wanted = (words(each) for each in (self._now(second), self._through(first)))
                    yield Complaint(Status.FAIL, f"output {number}{where} is {found} instead of {wanted}")
            if len(results) != len(now):
                yield Complaint(Status.FAIL, f"{scope or 'the model'} gives out {len(now)} values, not {len(results)}")
        first_defaults, second_defaults = self.before.defaults, self.after.defaults
        for name in sorted(first_defaults.keys() | second_defaults.keys()):
            pair = first_defaults.get(name), second_defaults.get(name)
            if pair[0] is None or pair[1] is None or not same_numbers(pair[0], pair[1]):
                yield Complaint(Status.FAIL, f"the stored value of {name} changed")

    @staticmethod
    def _are_same(first: Read, second: Read) -> bool:
        if isinstance(first, Held) and isinstance(second, Held):
            return same_numbers(first.numbers, second.numbers)
        return first == second

    # Which value is meant.

    def _now(self, read: Read) -> Read:
        """A value of the folded model by the name that it has in the original."""
        while isinstance(read, Wire) and not read.given and read.node in self._copies:
            operation = self.after.operations[read.node]
            read = operation.reads[operation.data or ""]
        if not isinstance(read, Wire) or read.given:
            return read
        if read.node in self._last:
            return Wire(self._last[read.node])
        return Wire(self._added[read.node]) if read.node in self._added else read

    def _through(self, read: Read) -> Read:
        """A value of the original, behind everything that the records say is gone."""
        start = read
        if isinstance(start, Wire) and start in self._known:
            return self._known[start]
        while isinstance(read, Wire) and not read.given:
            behind = self._behind(read)
            if behind == read:
                break
            read = behind
        if isinstance(start, Wire):
            self._known[start] = read
        return read

    def _behind(self, wire: Wire) -> Read:
        """One step; the same value where there is none to take."""
        name, operation = wire.node, self.before.operations.get(wire.node)
        if operation is None:
            return wire
        if name in self.story.biases:
            return Wire(self.story.biases[name])
        if name in self.story.affines or name in self.story.serial:
            if operation.data is None:
                raise _Lost(name)
            return operation.reads[operation.data]
        if name in self.after.operations or name in self.story.lowered:
            return wire
        if operation.adds:
            left = [read for port, read in operation.reads.items() if (name, port) not in self._dropped]
            return left[0] if len(left) == 1 else wire
        return self._behind_idle(wire, operation)

    def _behind_idle(self, wire: Wire, operation: Operation) -> Read:
        """Past two moves that undo each other, and past the product of a batch norm spelt as product and sum."""
        if operation.data is None:
            return wire
        if wire.node in self._halves:
            return operation.reads[operation.data]
        inner = self._through(operation.reads[operation.data]) if operation.move else None
        first = self.before.operations.get(inner.node) if isinstance(inner, Wire) and not inner.given else None
        gone = isinstance(inner, Wire) and inner.node not in self.after.operations
        if first is not None and gone and first.move and operation.move:
            undoes = _undoes(first.move, operation.move)
            if undoes is None:
                raise _Lost(wire.node)
            if undoes:
                return first.reads[first.data or ""]
        return wire

    @cached_property
    def _halves(self) -> frozenset[str]:
        """The products that a folded batch norm begins with, which have no record of their own."""
        operations = self.before.operations
        norms = [operations[name] for name in self.original.norms.keys() & self.story.affines & operations.keys()]
        fronts = [op.reads[op.data] for op in norms if op.data is not None]
        names = {read.node for read in fronts if isinstance(read, Wire) and not read.given and read.node in operations}
        known = self.original.norms.keys() | self.original.affines.keys() | self.original.linears.keys()
        return frozenset(name for name in names - known if operations[name].move is None)

    # Which terms of sums are gone.

    def _drop_terms(self) -> None:
        sums = [name for name, operation in self.before.operations.items() if operation.adds]
        trees = {name: list(self._places(name, set())) for name in sums} if self.story.hosts else {}
        for places in trees.values():
            present = {read.node for _, read in places if isinstance(read, Wire)}
            self._dropped |= {
                place for place, read in places if isinstance(read, Wire) and self.story.moved.get(read.node) in present
            }
        for places in trees.values():
            for host, count in self.story.lone:
                if host in self.before.operations and Wire(host) in [read for _, read in places]:
                    self._drop_value(host, count, places)
        for name in sums:
            self._drop_empty(name)
        self._known.clear()

    def _drop_value(self, host: str, count: int, places: Sequence[tuple[Place, Read]]) -> None:
        """The value that the host reads, where it is added to it."""
        operation = self.before.operations[host]
        data = self._short(operation.reads.get(operation.data or ""), past_sums=True)
        same = [place for place, read in places if self._are_same(self._short(read, past_sums=True), data)]
        left = [place for place in same if place not in self._dropped]
        self._dropped |= set(left[: max(0, count - len(same) + len(left))])

    def _drop_empty(self, name: str) -> None:
        """A sum without terms is no term itself; sums come after those that they read."""
        for port, read in self.before.operations[name].reads.items():
            inner = self._short(read)
            operation = self.before.operations.get(inner.node) if isinstance(inner, Wire) else None
            if not isinstance(inner, Wire) or operation is None or not operation.adds:
                continue
            if all((inner.node, each) in self._dropped for each in operation.reads):
                self._dropped.add((name, port))

    def _places(self, name: str, seen: set[str]) -> Iterator[tuple[Place, Read]]:
        """Every term of a sum and of the sums in it: where it stands and what it is."""
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            for port, read in self.before.operations[current].reads.items():
                short = self._short(read)
                yield (current, port), short
                operation = self.before.operations.get(short.node) if isinstance(short, Wire) else None
                if isinstance(short, Wire) and operation is not None and operation.adds:
                    waiting.append(short.node)

    def _short(self, read: Read, *, past_sums: bool = False) -> Read:
        """A value behind affines and idle nodes that are gone, but no further than a merged operator, or a sum unless
        it has one term left."""
        while isinstance(read, Wire) and not read.given:
            operation, linear = self.before.operations.get(read.node), self.story.biases.get(read.node, read.node)
            if operation is None or (operation.adds and not past_sums):
                break
            if linear in self.story.hosts or linear in self.story.moved:
                return Wire(linear)
            behind = self._behind(read)
            if behind == read:
                break
            read = behind
        return read


def _undoes(first: Move, second: Move) -> bool | None:
    """Whether the numbers are where they were; None where too few sizes are known to tell. As many numbers as before
    tell one size: what the others, which are not zero, leave."""
    if first.order is not None and second.order is not None:
        alike = len(first.order) == len(second.order)
        return alike and all(first.order[second.order[axis]] == axis for axis in range(len(first.order)))
    if first.order is not None or second.order is not None or len(first.before) != len(second.after):
        return False
    pairs = list(zip(first.before, second.after, strict=True))
    unlike = [pair for pair in pairs if pair[0] is None or pair[1] is None or pair[0] != pair[1]]
    if any(isinstance(one, int) and isinstance(other, int) for one, other in unlike):
        return False
    return True if len(unlike) <= 1 and (0, 0) not in pairs else None


def words(read: Read) -> str:
    """What is read, in a sentence."""
    if read is None:
        return "nothing"
    if isinstance(read, Held):
        return f"the constant {read.name}"
    if read.given:
        return f"input {read.port} of {read.node or 'the model'}"
    return read.node + (f" (output {read.port})" if read.port else "")

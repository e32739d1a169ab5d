"""The proof of a fold as a file: `bnfold.certificate/1`, described by `certificate.schema.json`.

    text = render(Certificate.of(pair, records, report, seed))     the same bytes for the same models
    certificate = read(path)                                       `Rejected` where it is none
    certificate.report                                             the records, from which L0 and L1 are derived again

It holds hashes of both models, what became of every affine and operator, the hash of every tensor that was written, and
its distance from the exact value in units of the last place. No paths, no time. Numbers that are long runs (indices of
channels) are written as runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np

from bnfold.errors import EnvironmentFailure, Rejected
from bnfold.evidence import Held
from bnfold.graph import Reason, Refusal, Site
from bnfold.origin import Chain, Joined, Leaf, Origin, Part, Stack
from bnfold.outcome import Absorbed, Combined, FoldReport, Outcome, Term
from bnfold.reports.environment import package_version, tool_version
from bnfold.reports.report import identified
from bnfold.run import FileRecord
from bnfold.verify.check import Records

SCHEMA = "bnfold.certificate/1"
LARGEST = 1 << 28
_BIASES = ("bias", "2", "input")
_ROLES = {"mul": "scale", "add": "shift"}

Ulps = Mapping[tuple[str, str], float]


def schema() -> dict[str, Any]:
    """The JSON Schema of the certificate, as shipped."""
    text = files("bnfold.reports").joinpath("certificate.schema.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def render(document: Mapping[str, Any]) -> str:
    """The certificate as JSON text: sorted keys, ASCII only, the same for the same content."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"


def document(
    reference: FileRecord, candidate: FileRecord, records: Records, ulps: Ulps, *, kind: str, seed: int
) -> dict[str, Any]:
    """The certificate as plain values. `ulps` are what L1 measured, by node and role of the tensor."""
    table = _Origins()
    report = records.report
    absorbed = [_event(event, table) for event in report.absorbed]
    packages = ("numpy", "onnx", "onnx-ir") if kind == "onnx" else ("numpy", "torch")
    return {
        "schema": SCHEMA,
        "tool": {"name": "bnfold", "version": tool_version()},
        "packages": {name: package_version(name) for name in packages},
        "kind": kind,
        "seed": seed,
        "reference": _hashes(reference),
        "candidate": _hashes(candidate),
        "affines": [_affine(identity, outcome, records, ulps) for identity, outcome in identified(report)],
        "merges": [_merge(event, records, ulps) for event in report.absorbed if isinstance(event, Combined)],
        "absorbed": absorbed,
        "origins": table.rows,
    }


def _hashes(record: FileRecord) -> dict[str, Any]:
    external = [{"sha256": file.sha256, "bytes": file.bytes} for file in record.external]
    return {"sha256": record.sha256, "bytes": record.bytes, "external": external}


def _affine(identity: str, outcome: Outcome, records: Records, ulps: Ulps) -> dict[str, Any]:
    taken = [tensor for site in outcome.into for tensor in _written(site.name, records, ulps)]
    kept = [tensor for name in outcome.lowered_to for tensor in _lowered(name, outcome.site.name, records, ulps)]
    return {
        "id": identity,
        "name": outcome.site.name,
        "op": outcome.site.op,
        "batch_norm": outcome.is_norm,
        "channels": outcome.channels,
        "axis": outcome.axis,
        "rule": outcome.rule,
        "into": [_site(site) for site in outcome.into],
        "via": [_site(site) for site in outcome.via],
        "reason": outcome.refusal.reason.code if outcome.refusal else None,
        "lowered_to": list(outcome.lowered_to),
        "tensors": [*taken, *kept],
    }


def _merge(event: Combined, records: Records, ulps: Ulps) -> dict[str, Any]:
    nodes = [term.operator for term in event.terms if term.operator not in (None, event.into)]
    return {"into": event.into, "nodes": nodes, "tensors": list(_written(event.into, records, ulps))}


def _site(site: Site) -> dict[str, str]:
    return {"node": site.name, "op": site.op}


def _written(node: str, records: Records, ulps: Ulps) -> Iterator[dict[str, Any]]:
    """The tensors that an operator holds now, its bias too where that is a node of its own."""
    linear = records.folded.linears.get(node)
    places = [(node, None), (linear.added, "bias")] if linear is not None and linear.added else [(node, None)]
    for name, given in places:
        operation = records.after.operations.get(name)
        for port, read in operation.reads.items() if operation is not None else ():
            if isinstance(read, Held) and port != operation.data:  # type: ignore[union-attr]
                role = given or ("bias" if port in _BIASES else "weight")
                yield _tensor(read, ulps.get((node, role)))


def _lowered(node: str, norm: str, records: Records, ulps: Ulps) -> Iterator[dict[str, Any]]:
    operation, affine = records.after.operations.get(node), records.folded.affines.get(node)
    for read in operation.reads.values() if operation is not None else ():
        if isinstance(read, Held):
            yield _tensor(read, ulps.get((norm, _ROLES[affine.op if affine else "add"])))


def _tensor(held: Held, ulp: float | None) -> dict[str, Any]:
    numbers = np.ascontiguousarray(held.numbers)
    rounded = None if ulp is None else float(f"{ulp:.6g}")
    digest = sha256(numbers.reshape(-1).view(np.uint8).data).hexdigest()
    return {
        "name": held.name,
        "dtype": numbers.dtype.name,
        "shape": list(numbers.shape),
        "sha256": digest,
        "ulp": rounded,
    }


# Where the numbers come from.


class _Origins:
    """Origin expressions as rows of a table, each once, parts before what is made of them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._places: dict[Any, int] = {}

    def place(self, origin: Origin) -> int:
        """The row of an expression."""
        waiting = [origin]
        while waiting:
            current = waiting[-1]
            parts = [part for part in _parts(current) if self._key(part) not in self._places]
            if parts:
                waiting += parts
                continue
            waiting.pop()
            if self._key(current) not in self._places:
                self._places[self._key(current)] = len(self.rows)
                self.rows.append(self._row(current))
        return self._places[self._key(origin)]

    @staticmethod
    def _key(origin: Origin) -> Any:
        return origin if isinstance(origin, Leaf) else id(origin)

    def _row(self, origin: Origin) -> dict[str, Any]:
        def at(part: Origin) -> int:
            return self._places[self._key(part)]

        match origin:
            case Leaf(name):
                return {"leaf": name}
            case Chain(first, second):
                return {"chain": [at(first), at(second)]}
            case Joined(first, second):
                return {"joined": [at(first), at(second)]}
            case Stack(parts):
                return {"stack": [[None if part is None else at(part), int(size)] for part, size in parts]}
            case Part(of, index, scaled, shifted):
                channels = None if index is None else _runs(index)
                return {"part": at(of), "channels": channels, "scaled": bool(scaled), "shifted": float(shifted)}


def _parts(origin: Origin) -> Sequence[Origin]:
    match origin:
        case Leaf():
            return ()
        case Chain(first, second) | Joined(first, second):
            return (first, second)
        case Stack(parts):
            return tuple(part for part, _ in parts if part is not None)
        case Part(of):
            return (of,)


def _runs(index: Any) -> list[list[int]]:
    """Numbers as runs `[first, count, step]`."""
    numbers, runs = [int(number) for number in index], list[list[int]]()
    for number in numbers:
        last = runs[-1] if runs else None
        if last is not None and last[1] == 1:
            last[1:] = [2, number - last[0]]
        elif last is not None and number == last[0] + last[1] * last[2]:
            last[1] += 1
        else:
            runs.append([number, 1, 1])
    return runs


def _event(event: Absorbed | Combined, table: _Origins) -> dict[str, Any]:
    if isinstance(event, Absorbed):
        return {"operator": event.operator, "side": event.side, "origin": table.place(event.origin)}
    terms = [
        {
            "sign": term.sign,
            "operator": term.operator,
            "origin": None if term.affine is None else table.place(term.affine),
        }
        for term in event.terms
    ]
    return {"into": event.into, "serial": event.serial, "terms": terms}


# Reading one.


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read: the document, and the records of the fold that are in it."""

    document: Mapping[str, Any]
    report: FoldReport

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def seed(self) -> int:
        return int(self.document["seed"])


def read(path: Path) -> Certificate:
    """The certificate in a file.

    Raises `Rejected` (`not-found`, `bad-certificate`) where there is none or it contradicts itself, and
    `EnvironmentFailure` (`unreadable`).
    """
    try:
        if path.stat().st_size > LARGEST:
            raise Rejected(f"{path} is too large for a certificate", code="bad-certificate")
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Rejected(f"{path} does not exist", code="not-found") from None
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}", code="unreadable") from error
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{path} is no certificate: it is not JSON", code="bad-certificate") from error
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise Rejected(f"{path} is no certificate of bnfold: its schema is not {SCHEMA}", code="bad-certificate")
    try:
        report = _report(plain)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"{path} is damaged: {type(error).__name__} {error}"
        raise Rejected(message, code="bad-certificate") from error
    if because := _contradiction(plain, report):
        raise Rejected(f"{path} contradicts itself: {because}", code="bad-certificate")
    return Certificate(plain, report)


def _report(plain: Mapping[str, Any]) -> FoldReport:
    origins: list[Origin] = []
    for row in plain["origins"]:
        origins.append(_origin(row, _earlier(origins)))
    for side in ("reference", "candidate"):
        _digest(plain[side]["sha256"])
    int(plain["seed"])
    find = _earlier(origins)
    return FoldReport(
        tuple(_outcome(row) for row in plain["affines"]), tuple(_absorbed(row, find) for row in plain["absorbed"])
    )


def _earlier(origins: list[Origin]) -> Callable[[Any], Origin]:
    def find(place: Any) -> Origin:
        if not isinstance(place, int) or not 0 <= place < len(origins):
            raise ValueError(f"origin {place} is not in front of what is made of it")
        return origins[place]

    return find


def _origin(row: Mapping[str, Any], find: Callable[[Any], Origin]) -> Origin:
    (kind,) = row.keys() & {"leaf", "chain", "joined", "stack", "part"}
    match kind:
        case "leaf":
            return Leaf(_text(row["leaf"]))
        case "chain":
            first, second = map(find, row["chain"])
            return Chain(first, second)
        case "joined":
            first, second = map(find, row["joined"])
            return Joined(first, second)
        case "stack":
            return Stack(tuple((None if part is None else find(part), int(size)) for part, size in row["stack"]))
    runs = row["channels"]
    if runs is not None and sum(count for _, count, _ in runs) > LARGEST:
        raise ValueError("a part has too many channels")
    steps = [np.arange(count) * step + first for first, count, step in runs or ()]
    index = None if runs is None else np.concatenate(steps) if steps else np.zeros(0, dtype=np.int64)
    return Part(find(row["part"]), index, bool(row["scaled"]), float(row["shifted"]))


def _outcome(row: Mapping[str, Any]) -> Outcome:
    reasons = {reason.code: reason for reason in Reason}
    into, via = (tuple(Site(_text(each["node"]), _text(each["op"])) for each in row[key]) for key in ("into", "via"))
    for tensor in row["tensors"]:
        _digest(tensor["sha256"])
    return Outcome(
        site=Site(_text(row["name"]), _text(row["op"])),
        channels=row["channels"],
        axis=row["axis"],
        rule=row["rule"],
        into=into,
        refusal=None if row["reason"] is None else Refusal(reasons[row["reason"]]),
        via=via,
        is_norm=bool(row["batch_norm"]),
        lowered_to=tuple(_text(name) for name in row["lowered_to"]),
    )


def _absorbed(row: Mapping[str, Any], find: Callable[[Any], Origin]) -> Absorbed | Combined:
    if "terms" not in row:
        if row["side"] not in ("before", "after"):
            raise ValueError(f"an affine stands before or after an operator, not {row['side']!r}")
        return Absorbed(row["operator"], row["side"], find(row["origin"]))
    terms = tuple(
        Term(each["sign"], each["operator"], None if each["origin"] is None else find(each["origin"]))
        for each in row["terms"]
    )
    if any(term.sign not in (1, -1) for term in terms) or (row["serial"] and len(terms) != 2):
        raise ValueError(f"the terms of {row['into']} are no sum, and no two operators in a row")
    return Combined(_text(row["into"]), terms, bool(row["serial"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _digest(value: Any) -> None:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no SHA-256")


def _contradiction(plain: Mapping[str, Any], report: FoldReport) -> str | None:
    """What two parts of a certificate say differently."""
    identities = [identity for identity, _ in identified(report)]
    if [row["id"] for row in plain["affines"]] != identities:
        return "the affines are not numbered from A001 on"
    writers = {event.operator if isinstance(event, Absorbed) else event.into for event in report.absorbed}
    for row, outcome in zip(plain["affines"], report.outcomes, strict=True):
        if outcome.folded and not outcome.rule:
            return f"{outcome.site.name} is folded by no rule"
        for site in outcome.into:
            if site.name not in writers:
                return f"{outcome.site.name} is folded into {site.name}, which took nothing in"
        if outcome.into and not row["tensors"]:
            return f"{outcome.site.name} is folded into an operator without tensors"
    return None


def difference(given: Any, derived: Any, where: str = "") -> str | None:
    """The first place at which a certificate is not what the models give; versions are not compared."""
    if isinstance(given, dict) and isinstance(derived, dict):
        keys = sorted((given.keys() | derived.keys()) - (set() if where else {"tool", "packages"}))
        pairs = [(f"{where}.{key}" if where else key, given.get(key), derived.get(key)) for key in keys]
    elif isinstance(given, list) and isinstance(derived, list) and len(given) == len(derived):
        pairs = [(f"{where}[{i}]", one, other) for i, (one, other) in enumerate(zip(given, derived, strict=True))]
    else:
        return None if given == derived else f"{where} is {_short(given)}, and the models give {_short(derived)}"
    return next((found for place, one, other in pairs if (found := difference(one, other, place))), None)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

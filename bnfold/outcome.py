"""What was decided, in the user's words: a row per affine, a row per merge, and what the certificate needs of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from bnfold.display import plain, some, table
from bnfold.errors import PolicyViolation
from bnfold.graph import Refusal, Site
from bnfold.origin import Origin
from bnfold.rules import Side


@dataclass(frozen=True)
class Outcome:
    """What became of one affine. `into` are the operators that took it, `via` those it crossed on the way there;
    `refusal` says why it stays. `is_norm` tells a batch norm from any other affine. `copied_bytes` is what copies of
    shared weights added for its sake, each copy counted once, for the first affine that needed it. `lowered_to` are the
    nodes that do what is left of a batch norm that stays; where it is only `partly` left, `into` took in its scale."""

    site: Site
    channels: int | None
    axis: int | None
    rule: str | None
    into: tuple[Site, ...]
    refusal: Refusal | None
    via: tuple[Site, ...] = ()
    is_norm: bool = True
    copied_bytes: int = 0
    lowered_to: tuple[str, ...] = ()

    @property
    def folded(self) -> bool:
        return self.refusal is None

    @property
    def partly(self) -> bool:
        """Whether its scale folded and its shift stays."""
        return self.refusal is not None and self.rule is not None

    @property
    def lowered(self) -> bool:
        """Whether what stays of it is no batch norm any more."""
        return bool(self.lowered_to)

    @property
    def fate(self) -> str:
        """The code of the reason why it stays, and as what; or what took it in and through what it went there."""
        if self.refusal:
            rest = f", its scale in {some([titled(site) for site in self.into])}" if self.partly else ""
            rest = rest or ", as elementwise operators" * self.lowered
            return f"{self.refusal.reason.code}{rest}"
        through = f" through {some([site.op for site in self.via])}" if self.via else ""
        return (some([titled(site) for site in self.into]) or "nothing: it has no effect") + through

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON report, as JSON holds it, but for its id and the range of the weights."""
        found: dict[str, Any] = plain(
            {
                "name": self.site.name,
                "op": self.site.op,
                "batch_norm": self.is_norm,
                "channels": self.channels,
                "axis": self.axis,
                "module": self.site.module,
                "source": {"file": self.site.source[0], "line": self.site.source[1]} if self.site.source else None,
                "outcome": self.status,
                "rule": self.rule,
                **{key: [_node(site) for site in sites] for key, sites in (("into", self.into), ("via", self.via))},
                "reason": _reason(self.refusal),
                "copied_bytes": self.copied_bytes,
            }
        )
        return found

    @property
    def status(self) -> str:
        """folded, partly or left."""
        return "folded" if self.folded else "partly" if self.partly else "left"


def titled(site: Site) -> str:
    """A node in the user's words: its module if that is known."""
    return site.module or site.name


def _node(site: Site) -> dict[str, str | None]:
    return {"node": site.name, "op": site.op, "module": site.module}


def _reason(refusal: Refusal | None) -> dict[str, Any] | None:
    if refusal is None:
        return None
    return {
        "code": refusal.reason.code,
        "message": refusal.reason.message,
        "remedy": refusal.remedy,
        "blocker": refusal.blocker,
        "also": list(refusal.also),
        "modules": dict(refusal.modules),
    }


@dataclass(frozen=True, eq=False)
class Absorbed:
    """One affine that the operator of this name took in, in front of it or behind it; None where it does nothing."""

    operator: str | None
    side: Side
    origin: Origin


@dataclass(frozen=True, eq=False)
class Term:
    """A part of a merged operator: `sign` times an operator, an affine, or neither (the identity)."""

    sign: int
    operator: str | None
    affine: Origin | None


@dataclass(frozen=True, eq=False)
class Combined:
    """The operator `into` became the sum of these terms, or (`serial`) the last of them behind the first."""

    into: str
    terms: tuple[Term, ...]
    serial: bool = False


@dataclass(frozen=True)
class Merged:
    """Linear operators that became one: `nodes` went, `into` stays.

    `macs_saved` are multiply-adds at batch 1 and `activation_bytes_saved` the values that are not made any more, None
    where a size is not known; `parameters_saved` counts stored numbers. `cancellation` says how many times larger the
    terms of a kernel are than their sum, in the output channel where that is worst (None where nothing was added).
    """

    rule: str
    into: Site
    nodes: tuple[Site, ...]
    macs_saved: int | None
    parameters_saved: int
    activation_bytes_saved: int | None
    cancellation: float | None

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON report, as JSON holds it."""
        found: dict[str, Any] = plain(
            {
                "rule": self.rule,
                "nodes": [site.name for site in self.nodes],
                "into": self.into.name,
                "module": self.into.module,
                "macs_saved": self.macs_saved,
                "parameters_saved": self.parameters_saved,
                "activation_bytes_saved": self.activation_bytes_saved,
                "cancellation": self.cancellation,
            }
        )
        return found


@dataclass(frozen=True)
class Unmerged:
    """Linear operators on one value that stay apart, at this addition or operator, and why."""

    site: Site
    refusal: Refusal

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON report, as JSON holds it."""
        return {"node": self.site.name, "reason": self.refusal.reason.code, "blocker": self.refusal.blocker}


@dataclass(frozen=True)
class Copied:
    """A shared weight that these operators do not share any more, and the bytes that this added."""

    operators: tuple[Site, ...]
    nbytes: int


@dataclass(frozen=True)
class FoldReport:
    """One row per affine of the model, in topological order; `absorbed` is what was composed and merged, in order;
    `copies` are the weights that were shared and are not any more, `merges` the operators that became one.

    `folded`, `left` and `raise_if_unfolded` speak of batch norms; other affines have rows of their own.
    """

    outcomes: tuple[Outcome, ...]
    absorbed: tuple[Absorbed | Combined, ...] = ()
    copies: tuple[Copied, ...] = ()
    merges: tuple[Merged, ...] = ()
    unmerged: tuple[Unmerged, ...] = ()

    @property
    def norms(self) -> tuple[Outcome, ...]:
        """The rows of the batch norms."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_norm)

    @property
    def folded(self) -> int:
        """How many batch norms folded."""
        return sum(outcome.folded for outcome in self.norms)

    @property
    def left(self) -> int:
        """How many batch norms stay."""
        return len(self.norms) - self.folded

    @property
    def summary(self) -> dict[str, int]:
        """The counts of the JSON report: of affines, of batch norms, of merged operators."""
        return {
            "affines": len(self.outcomes),
            "affines_folded": sum(outcome.folded for outcome in self.outcomes),
            "folded": self.folded,
            "merged": len(self.merges),
            "left": self.left,
        }

    def identified(self) -> tuple[tuple[str, Outcome], ...]:
        """Every affine with its id: `A001` and on, in topological order."""
        return tuple((f"A{number:03d}", outcome) for number, outcome in enumerate(self.outcomes, start=1))

    def to_dict(self) -> dict[str, Any]:
        """`summary`, `affines`, `merges` and `unmerged` with the keys of the JSON report, as JSON holds them."""
        return {
            "summary": self.summary,
            "affines": [{"id": identity, **outcome.to_dict()} for identity, outcome in self.identified()],
            "merges": [merged.to_dict() for merged in self.merges],
            "unmerged": [each.to_dict() for each in self.unmerged],
        }

    def unaccepted(self, accept: Iterable[str] = ()) -> tuple[Outcome, ...]:
        """The batch norms left for a reason whose code is not in `accept`."""
        accepted = set(accept)
        return tuple(o for o in self.norms if o.refusal and o.refusal.reason.code not in accepted)

    def raise_if_unfolded(self, accept: Iterable[str] = ()) -> None:
        """Raise `PolicyViolation` if a batch norm is left for a reason that `accept` does not name."""
        if left := self.unaccepted(accept):
            pairs = sorted((o.refusal.reason.code, titled(o.site)) for o in left if o.refusal)
            named = {code: [name for _, name in group] for code, group in groupby(pairs, itemgetter(0))}
            found = ", ".join(f"{len(names)} {code} ({some(names)})" for code, names in named.items())
            others = self.left - len(left)
            more = f"; {others} more for reasons that are accepted" if others else ""
            raise PolicyViolation(
                f"{len(left)} of {len(self.norms)} batch norms are left: {found}{more}",
                hint=f"what to do: bnfold explain {min(named)}; to let it pass: accept {min(named)} (--accept)",
            )

    def __repr__(self) -> str:
        return f"FoldReport({self._counted})"

    def _repr_html_(self) -> str:
        """A table for notebooks: a row per batch norm, and per other affine that folded; those that stay come first."""
        shown = sorted((o for o in self.outcomes if o.is_norm or o.folded), key=lambda o: o.folded)
        rows = [(titled(o.site), o.status, o.fate) for o in shown]
        return table(self._counted, ("batch norm", "outcome", "into, or the reason"), rows)

    @property
    def _counted(self) -> str:
        return f"{self.folded} of {len(self.norms)} batch norms folded"

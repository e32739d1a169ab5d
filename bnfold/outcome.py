"""What was decided, in the user's words: a row per affine, a row per merge, and what the certificate needs of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Unmerged:
    """Linear operators on one value that stay apart, at this addition or operator, and why."""

    site: Site
    refusal: Refusal


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
        return sum(outcome.folded for outcome in self.norms)

    @property
    def left(self) -> int:
        return len(self.norms) - self.folded

    def unaccepted(self, accept: Iterable[str] = ()) -> tuple[Outcome, ...]:
        """The batch norms left for a reason whose code is not in `accept`."""
        accepted = set(accept)
        return tuple(o for o in self.norms if o.refusal and o.refusal.reason.code not in accepted)

    def raise_if_unfolded(self, accept: Iterable[str] = ()) -> None:
        """Raise `PolicyViolation` if a batch norm is left for a reason that `accept` does not name."""
        if left := self.unaccepted(accept):
            codes = Counter(o.refusal.reason.code for o in left if o.refusal)
            found = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
            raise PolicyViolation(f"{len(left)} of {len(self.norms)} batch norms are left: {found}")

    def __repr__(self) -> str:
        return f"FoldReport({self.folded} of {len(self.norms)} batch norms folded)"

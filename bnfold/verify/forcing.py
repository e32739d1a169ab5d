"""Models that round or decide, judged between their decisions.

The smallest error before a rounding may become a large one behind it, in a correct fold as well. So both models are cut
where a value enters an operator that rounds or decides, and both continue from the reference's values: every decision
is taken on the same numbers, and the error of each stretch is its own.
"""

from __future__ import annotations

from bnfold.errors import MissingDependency, NoVerdict
from bnfold.verify.execution import Execution
from bnfold.verify.local import opened
from bnfold.verify.machines import Subject
from bnfold.verify.meters import EndToEnd
from bnfold.verify.stretches import Both, Pair

FAMILY = "normal"
MOST_PROBES = 2


def between_decisions(reference: Subject, candidate: Subject, execution: Execution) -> EndToEnd | None:
    """The errors of everything that enters a decision, and of the results; None where the two models cannot be cut at
    every decision."""
    probes = [probe for probe in execution.ran if probe.family == FAMILY] or execution.ran
    found = EndToEnd()
    try:
        for probe in probes[:MOST_PROBES]:
            both, results = opened(reference, candidate, execution, probe.feeds)
            cuts = _decisions(both)
            if cuts is None:
                return None
            for end in dict.fromkeys([*cuts.items(), *results]):
                if end[0] in both.reference.makers:
                    _measure(both, cuts, end, found, execution.plan.probes.seed)
    except (NoVerdict, MissingDependency):
        return None
    return found if found.meters else None


def _decisions(both: Both) -> dict[str, str] | None:
    """The values that enter decisions, in both models; None if one of them has no counterpart."""
    cuts = {mine: other for mine, other in both.matches.items() if mine in both.reference.deciding}
    known = both.reference.deciding & both.reference.sketches.keys() <= cuts.keys()
    theirs = both.candidate.deciding & both.candidate.sketches.keys() <= set(cuts.values())
    return cuts if known and theirs else None


def _measure(both: Both, cuts: dict[str, str], end: Pair, found: EndToEnd, seed: int) -> None:
    for _, *results in both.results(both.stretch(cuts, end), seed):
        found.add(*({end[0]: result} for result in results))

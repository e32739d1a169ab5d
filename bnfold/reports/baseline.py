"""What folded once must fold again: a former JSON report against the fates of the same batch norms today.

Batch norms are matched by their module, or else by the name of their node, as every report calls them. Ids are not
names: they shift as soon as a model grows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from bnfold.errors import EnvironmentFailure, PolicyViolation, Rejected
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports.report import REGRESSED, SCHEMA, identified
from bnfold.run import Finding

GONE, NEW = "baseline-gone", "baseline-new"
_HINT = "bnfold inspect MODEL --report baseline.json"


def read(path: Path) -> dict[str, bool]:
    """Per batch norm of a former report, whether it folded.

    Raises `Rejected` for what is no report of a command that folds or inspects.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError("of another schema")
        rows = [row for row in document["affines"] if row["batch_norm"]]
        names = _names([(row["module"], row["name"]) for row in rows])
        folded = [row["outcome"] == "folded" for row in rows]
        judged = document["summary"]["folded"] is not None
    except OSError as error:
        raise EnvironmentFailure(
            f"the baseline {path} cannot be read: {error.strerror}", code="baseline-not-readable"
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Rejected(f"the baseline {path} is no JSON report of bnfold", code="not-a-report", hint=_HINT) from error
    if not judged:
        message = f"the baseline {path} is of a command that did not get as far as folding"
        raise Rejected(message, code="not-a-report", hint=_HINT)
    return dict(zip(names, folded, strict=True))


def regressions(fold: FoldReport, baseline: Mapping[str, bool], accept: Collection[str] = ()) -> list[Finding]:
    """An error per batch norm that folded in the baseline and does not now, unless for an accepted reason; a note per
    batch norm that is new and stays, and per one that is gone."""
    rows = [(identity, outcome) for identity, outcome in identified(fold) if outcome.is_norm]
    names = _names([(outcome.site.module, outcome.site.name) for _, outcome in rows])
    found = [
        finding
        for name, (identity, outcome) in zip(names, rows, strict=True)
        if (finding := _compared(name, identity, outcome, baseline, accept))
    ]
    gone = [name for name in baseline if name not in names]
    return [*found, *(Finding(GONE, "note", f"{name} is in the baseline and not in the model") for name in gone)]


def enforce(fold: FoldReport, baseline: Mapping[str, bool], found: Collection[Finding]) -> None:
    """Raise `PolicyViolation` where a batch norm regressed, or where the two have none in common to compare."""
    if lost := [finding for finding in found if finding.code == REGRESSED]:
        more = f"; and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise PolicyViolation(f"{lost[0].message}{more}", code=REGRESSED)
    gone = sum(finding.code == GONE for finding in found)
    if baseline and fold.norms and gone == len(baseline):
        raise PolicyViolation(
            "no batch norm of the model is in the baseline, so nothing was compared",
            code="baseline-differs",
            hint="write a new baseline if the model was renamed: bnfold inspect MODEL --report baseline.json",
        )


def _compared(
    name: str, identity: str, outcome: Outcome, baseline: Mapping[str, bool], accept: Collection[str]
) -> Finding | None:
    refusal = outcome.refusal
    if refusal is None or not baseline.get(name, True):
        return None
    reason, blocker = refusal.reason, f", because of {refusal.obstacles[0]}" if refusal.obstacles else ""
    if name not in baseline:
        return Finding(NEW, "note", f"{name} is not in the baseline and stays: {reason.code}{blocker}", None, identity)
    if reason.code in accept:
        return None
    message = f"{name} folded in the baseline and does not now: {reason.code}{blocker}"
    return Finding(REGRESSED, "error", message, refusal.remedy, identity)


def _names(sites: list[tuple[str | None, str]]) -> list[str]:
    """One name for each: the module, with its node where the module is called more than once."""
    titles = [module or node for module, node in sites]
    times = Counter(titles)
    return [title if times[title] == 1 else f"{title} ({node})" for title, (_, node) in zip(titles, sites, strict=True)]

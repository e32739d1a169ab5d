"""`docs/findings.md`: the part about the codes is made from the tables that `bnfold explain` reads, the rest is written
by hand.

python tests/finding_page.py        brings the page up to date
"""

from __future__ import annotations

from pathlib import Path

from bnfold.graph import Reason
from bnfold.reports.conditions import FIRES, Condition
from bnfold.reports.explain import EXAMPLES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "findings.md"

BY_SHARE = "note; warning where it is more than half of the channels"
BY_PART = "note; warning where it is more than half of the running statistics"
SEVERITIES: dict[Condition | Reason, str] = {
    Reason.VARIANCE_NOT_POSITIVE: "error",
    Reason.NON_FINITE: "error",
    Reason.BATCH_STATISTICS: "warning",
    Condition.UNTRAINED: "warning",
    Condition.FEW_BATCHES: BY_PART,
    Condition.NEAR_ZERO_VARIANCE: BY_SHARE,
    Condition.HUGE_VARIANCE: "warning",
    Condition.DEAD_CHANNELS: BY_SHARE,
    Condition.CONSTANT_CHANNELS: BY_SHARE,
    Condition.FLOAT16_OVERFLOW: "warning",
    Condition.SCALE_SPREAD: "note",
    Condition.CHANNEL_PEAK: "note",
    Condition.DROPOUT_BEFORE_NORM: "note",
    Condition.UNUSUAL_MOMENTUM: "note",
    Condition.UNUSUAL_EPSILON: "note",
    Condition.SUBNORMAL: "warning",
    Condition.CANCELLATION: "warning",
    Condition.BASELINE_REGRESSED: "error",
    Condition.BASELINE_NEW: "note",
    Condition.BASELINE_GONE: "note",
}
"""Each is said where the finding is made; tests/test_docs.py holds both together."""

BEGIN = "## The codes\n"
"""What stands before it is written by hand."""


def page(written: str) -> str:
    """The page: what is written by hand, a summary, and a section for each code."""
    summary = "".join(f"| [`{each.code}`](#{each.code}) | {SEVERITIES[each]} |\n" for each in SEVERITIES)
    table = f"| Code | Severity |\n|---|---|\n{summary}\n"
    return written[: written.index(BEGIN)] + f"{BEGIN}\n{table}" + "\n".join(map(_section, SEVERITIES))


def _section(each: Condition | Reason) -> str:
    example = EXAMPLES[each] if isinstance(each, Reason) else each.example
    fires = FIRES[each] if isinstance(each, Reason) else each.fires
    also = f"It is also [a reason to stay](reasons/{each.code}.md).\n\n" if isinstance(each, Reason) else ""
    return (
        f"### `{each.code}`\n\n"
        f"**Severity:** {SEVERITIES[each]}.\n\n"
        f"**What it means:** {each.message}.\n\n"
        f"**Found where:** {fires}.\n\n"
        f"**What to do:** {each.remedy}.\n\n"
        f"**Example:** `{example}`\n\n{also}"
    ).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

"""One command, finished or failed: what every kind of report shows.

A `Report` adds to a `Run` how it ended. It decides the exit code where several things went wrong at once, and it holds
the sentence that every rendering begins with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.errors import BnfoldError, Exit
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports.text import figure, plural
from bnfold.run import MODELS_NOT_READ, Run
from bnfold.verify.result import Verdict

if TYPE_CHECKING:
    from bnfold.benchmark import Benchmark, Compared

SCHEMA = "bnfold.report/1"

REGRESSED = "baseline-regressed"
"""The code of the finding that a batch norm folded in the baseline and does not now."""

# Several things may go wrong at once; the first of these is what the process returns.
PRECEDENCE = (
    Exit.TERMINATED,
    Exit.INTERRUPTED,
    Exit.INTERNAL,
    Exit.ENVIRONMENT,
    Exit.REJECTED,
    Exit.USAGE,
    Exit.NOT_EQUIVALENT,
    Exit.NO_VERDICT,
    Exit.POLICY,
    Exit.GATE,
)

STATUS = {
    Exit.OK: "ok",
    Exit.NOT_EQUIVALENT: "not_equivalent",
    Exit.USAGE: "usage",
    Exit.POLICY: "policy",
    Exit.REJECTED: "rejected",
    Exit.ENVIRONMENT: "environment",
    Exit.GATE: "gate",
    Exit.NO_VERDICT: "no_verdict",
    Exit.INTERNAL: "internal",
    Exit.INTERRUPTED: "interrupted",
    Exit.TERMINATED: "interrupted",
}

# These end a command before its result; the others judge a result.
_CUT_SHORT = (Exit.USAGE, Exit.REJECTED, Exit.ENVIRONMENT, Exit.INTERNAL, Exit.INTERRUPTED, Exit.TERMINATED)

VERDICT_WORDS = {
    Verdict.PROVED: "proved equivalent",
    Verdict.VERIFIED: "verified equivalent",
    Verdict.FAILED: "NOT equivalent",
    Verdict.NO_VERDICT: "no verdict",
}


@dataclass(frozen=True)
class Policy:
    """What the caller asks beyond a correct result: no batch norm left, but for the accepted reason codes."""

    fail_on_unfolded: bool = False
    accept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A run and how it ended. `started` is ISO 8601 in UTC, `elapsed_s` in seconds."""

    run: Run
    argv: tuple[str, ...]
    started: str
    elapsed_s: float
    failures: tuple[BnfoldError, ...] = ()
    policy: Policy = Policy()

    @property
    def ordered_failures(self) -> list[BnfoldError]:
        """The gravest failure first."""
        return sorted(self.failures, key=lambda error: PRECEDENCE.index(error.exit_code))

    @property
    def failure(self) -> BnfoldError | None:
        """The failure that decides the exit code; None if all is well."""
        return next(iter(self.ordered_failures), None)

    @property
    def exit_code(self) -> Exit:
        return self.failure.exit_code if self.failure else Exit.OK

    @property
    def status(self) -> str:
        return STATUS[self.exit_code]

    @property
    def tells_something(self) -> bool:
        """Whether there is anything to show beyond the failures themselves."""
        run = self.run
        return not self.failures or any(part is not None for part in (run.fold, run.check, run.bench))

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        if self.run.bench is not None and self.run.command == "bench":
            return _bench_headline(self.run.bench)
        if self.run.fold is not None:
            return _fold_headline(self)
        if self.run.check is not None:
            return f"{self.run.check.sentence[:1].upper()}{self.run.check.sentence[1:]}."
        if self.failure is not None:
            return f"Failed: {self.failure}"
        if any(warning.code == MODELS_NOT_READ for warning in self.run.warnings):
            return "Nothing was verified of any model."
        if self.run.command == "explain":
            told = self.run.findings
            return f"{told[0].code}: {told[0].message}." if len(told) == 1 else f"{len(told)} reasons and findings."
        return "Done."

    def begins_with(self, sentence: str) -> bool:
        """Whether the headline says this already; it begins with a capital letter."""
        return bool(sentence) and sentence[1:] in self.headline

    def violates(self, identity: str, outcome: Outcome) -> bool:
        """Whether this is a batch norm that the policy, or the baseline, does not allow to stay."""
        if any(finding.code == REGRESSED and finding.affine == identity for finding in self.run.findings):
            return True
        refusal = outcome.refusal
        demanded = self.policy.fail_on_unfolded and outcome.is_norm
        return demanded and refusal is not None and refusal.reason.code not in self.policy.accept


def identified(fold: FoldReport | None) -> Iterator[tuple[str, Outcome]]:
    """Every affine with its id: `A001` and on, in topological order."""
    return iter(fold.identified() if fold else ())


def others_folded(fold: FoldReport) -> int:
    """How many affines folded that are no batch norms."""
    return sum(outcome.folded and not outcome.is_norm for outcome in fold.outcomes)


def _fold_headline(report: Report) -> str:
    fold, check = report.run.fold, report.run.check
    assert fold is not None, "called for a run that folded"
    total, taken = len(fold.norms), _taken(fold)
    if report.exit_code in _CUT_SHORT and report.run.output is None:
        return f"Failed after folding {taken}."
    folds, merges = fold.folded or others_folded(fold), plural(len(fold.merges), "operator")
    verdict = VERDICT_WORDS[check.verdict] if check else "not checked"
    if report.run.command == "inspect":
        done = [f"{taken} would fold"] * bool(folds) + [f"linear operators would merge into {merges}"] * bool(
            fold.merges
        )
        return _sentence(done) if done else _nothing(total)
    lowered = sum(outcome.lowered for outcome in fold.norms)
    done = [f"folded {taken}"] * bool(folds) + [f"merged linear operators into {merges}"] * bool(fold.merges)
    done += [f"made elementwise operators of {plural(lowered, 'batch norm')}"] * bool(lowered)
    if not done:
        return _nothing(total) if check is None else f"{_nothing(total)[:-1]}; {verdict}."
    return _sentence([" and ".join(done), verdict])


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _taken(fold: FoldReport) -> str:
    """`3 of 4 batch norms and 1 other affine`."""
    others = others_folded(fold)
    if others and not fold.norms:
        return plural(others, "affine")
    more = f" and {plural(others, 'other affine')}" if others else ""
    return f"{fold.folded} of {plural(len(fold.norms), 'batch norm')}{more}"


def _bench_headline(bench: Benchmark) -> str:
    """What may be said with the runtime's own optimisation on, as everybody runs it."""
    said = [_told(pair) for pair in bench.comparisons if (pair.options, pair.batch) == (bench.mode, bench.batch)]
    return f"{'; '.join(said)}." if said else f"Measured {plural(len(bench.contenders), 'model')}."


def _told(pair: Compared) -> str:
    if pair.verdict not in ("faster", "slower") or pair.ratio is None:
        return f"{pair.b} against {pair.a}: {pair.verdict.replace('_', ' ')}"
    return f"{pair.b} is {pair.verdict} than {pair.a}: {interval(pair.ratio, pair.low, pair.high)}"


def interval(ratio: float, low: float | None, high: float | None) -> str:
    """A ratio, never without its uncertainty."""
    return f"{ratio:.2f} times as fast [{figure(low)}, {figure(high)}]"


def _nothing(total: int) -> str:
    if total == 0:
        return "Nothing to fold: the model has no batch norm."
    if total == 1:
        return "Nothing to fold: the one batch norm of the model stays."
    return f"Nothing to fold: all {total} batch norms of the model stay."

"""From a job to an exit code: do the work, judge it, publish it. Nothing that happens on the way escapes."""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, TextIO

from bnfold.cli.failures import InternalError, spoken, told
from bnfold.cli.job import Job
from bnfold.cli.streams import emit, python_warnings, stdout_to_stderr
from bnfold.display import brief
from bnfold.errors import BnfoldError, Exit, NotEquivalent, clean
from bnfold.run import Run

if TYPE_CHECKING:
    from bnfold.reports.report import Report

SAVING = "--save-failure"
CLEAR_LINE = "\r\x1b[K"


def conduct(job: Job, argv: Sequence[str]) -> Exit:
    """Run the job, publish what came of it, and return the exit code."""
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    run = Run(job.command, progress=_progress(job), hashed=bool(job.flags.report or job.flags.json), typed=tuple(argv))
    files, failures = _usable_reports(job)
    failures += _attempt(partial(_refuse_unknown_codes, job))
    if not failures:
        with stdout_to_stderr(), python_warnings(shown=job.flags.debug):
            failures += _attempt(partial(job.work, run))
        failures += _attempt(partial(_judge, job, run))
        failures += _attempt(partial(_judge_findings, job, run))
        _suggest_saving(run, argv, failures)
        run.progress("")
    return _publish(job, run, argv, started, time.perf_counter() - clock, failures, files)


def _attempt(step: Callable[[], None]) -> list[BnfoldError]:
    """What went wrong, if anything. Interrupts and the exit() of somebody's model code are answers too."""
    try:
        step()
    except BaseException as error:
        return [told(error)]
    return []


def _usable_reports(job: Job) -> tuple[list[Path], list[BnfoldError]]:
    """The report files that can be written, and why the others cannot: said before any work is done."""
    files, failures = [], []
    for path in dict.fromkeys(job.flags.report):
        if refused := _attempt(partial(_refuse_report, job, path)):
            failures += refused
        else:
            files.append(path)
    return files, failures


def _refuse_report(job: Job, path: Path) -> None:
    from bnfold.reports.files import refuse_unusable

    refuse_unusable(path, job.models, job.baseline)


def _refuse_unknown_codes(job: Job) -> None:
    from bnfold.reports.conditions import refuse_unknown
    from bnfold.reports.explain import known

    for code in job.policy.accept:
        known(code)
    for word in job.fail_on:
        refuse_unknown(word)


def _judge(job: Job, run: Run) -> None:
    if job.policy.fail_on_unfolded and run.fold is not None:
        run.fold.raise_if_unfolded(job.policy.accept)
    if run.bench is not None and run.bench.interrupted:
        raise KeyboardInterrupt


def _judge_findings(job: Job, run: Run) -> None:
    from bnfold.reports.conditions import enforce

    enforce(run.findings, job.fail_on)


def _suggest_saving(run: Run, argv: Sequence[str], failures: Sequence[BnfoldError]) -> None:
    """Where models were run and differ, the same command again that keeps the part that does."""
    kept = any(word.partition("=")[0] in (SAVING, "--") for word in argv)
    for error in failures:
        if isinstance(error, NotEquivalent) and error.hint is None and run.check and run.check.inputs and not kept:
            error.hint = shlex.join(["bnfold", *argv, SAVING, "failure"])


def _publish(
    job: Job,
    run: Run,
    argv: Sequence[str],
    started: str,
    elapsed: float,
    failures: list[BnfoldError],
    files: Sequence[Path],
) -> Exit:
    """Files first, then the terminal, then stdout's JSON, which knows of every failure before it; then the errors, and
    on stderr what GitHub shows of all that, so that `--json` leaves nothing but JSON on stdout."""
    from bnfold.reports import github
    from bnfold.reports.files import write
    from bnfold.reports.report import Report

    report = Report(run, tuple(argv), started, elapsed, tuple(failures), job.policy.policy())
    if job.show is None and (unwritten := github.append_summary(report)):
        run.warn("step-summary", unwritten)
    steps = [*(partial(write, path=path) for path in files), partial(_show, job=job), partial(_print_json, job=job)]
    for step in steps:
        report = replace(report, failures=(*report.failures, *_attempt(partial(step, report))))
    for error in report.ordered_failures:
        say(error, debug=job.flags.debug)
    emit(github.commands(report, quiet=job.flags.quiet), sys.stderr)
    return report.exit_code


def _show(report: Report, job: Job) -> None:
    """The report for people: on stdout, or on stderr where stdout is for programs."""
    from bnfold.reports import console, github

    if job.flags.quiet:
        return
    stream = sys.stderr if job.flags.json else sys.stdout
    if job.show is not None:
        emit(job.show(), stream)
    elif report.tells_something:
        emit(github.harmless(console.render(report, stream)), stream)


def _print_json(report: Report, job: Job) -> None:
    from bnfold.reports import json

    if job.flags.json:
        emit(json.render(report), sys.stdout)


def say(error: BnfoldError, *, debug: bool = False) -> None:
    """The sentence on stderr, and the traceback of an internal error for those who ask."""
    from bnfold.reports.github import harmless

    if debug and isinstance(error, InternalError) and error.__cause__ is not None:
        lines = "".join(traceback.format_exception(error.__cause__)).split("\n")
        emit("\n".join(map(clean, lines)), sys.stderr)
    emit(harmless(spoken(error)), sys.stderr)


def _progress(job: Job) -> Callable[[str], None]:
    """One line on a terminal that says what stage the work is in; nothing elsewhere."""
    stream: TextIO = sys.stderr
    if job.flags.quiet or not stream.isatty():
        return lambda stage: None
    longest = get_terminal_size().columns - len(" … ")
    return lambda stage: emit(f"{CLEAR_LINE}{brief(stage, longest)} …" if stage else CLEAR_LINE, stream)

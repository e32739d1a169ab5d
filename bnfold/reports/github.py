"""What GitHub Actions shows of a command: annotations beside the code, and a summary of the step.

Both are asked for by the environment: `GITHUB_ACTIONS` is "true" there, and `GITHUB_STEP_SUMMARY` names a file to which
Markdown is appended. An annotation is a line that a step prints (a "workflow command"). The runner obeys such lines on
either stream, wherever they come from, so a name out of a model must not become one: see `harmless`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import clean
from bnfold.graph import Site
from bnfold.reports import markdown, tables
from bnfold.reports.report import REGRESSED, Report, identified
from bnfold.verify.result import Status

MAX_OF_A_KIND = 10
"""The runner shows no more annotations of a kind per step."""

MAX_SUMMARY = 1 << 20
"""Bytes of a step's summary, beyond which none of it is shown."""

_COMMAND_AT_THE_START = re.compile(r"^(\s*):(?=:)", re.MULTILINE)


@dataclass(frozen=True)
class Annotation:
    """`level` is error or warning; `file` and `line` say where it is shown, where that is known."""

    level: str
    title: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        """The workflow command, on one line."""
        properties = {"file": self.file, "line": self.line, "title": f"bnfold: {self.title}"}
        told = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items() if value is not None)
        return f"::{self.level} {told}::{_data(self.message)}"


def active() -> bool:
    """Whether this is a step of a GitHub workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def harmless(text: str) -> str:
    """The text, for GitHub such that no line of it is a workflow command: neither `::name::` nor the old `##[name]`."""
    if not active():
        return text
    return _COMMAND_AT_THE_START.sub(r"\1: ", text).replace("##[", "## [")


def commands(report: Report, *, quiet: bool = False) -> str:
    """The workflow commands of this report, one a line, none elsewhere; `quiet` leaves the warnings out."""
    if not active():
        return ""
    found = list(_annotations(report))
    kinds = ("error",) if quiet else ("error", "warning")
    return "".join(f"{each}\n" for kind in kinds for each in _cut([a for a in found if a.level == kind]))


def append_summary(report: Report) -> str | None:
    """Add the Markdown report to the summary of the step; the reason why that could not be, if it could not."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not (active() and name):
        return None
    text = (markdown.render(report) + "\n").encode()
    path = Path(name)
    try:
        if (path.stat().st_size if path.exists() else 0) + len(text) > MAX_SUMMARY:
            return "the summary of this step has no room for the report"
        with path.open("ab") as file:
            file.write(text)
    except OSError as error:
        return f"the summary of this step could not be written: {error.strerror or error}"
    return None


def _annotations(report: Report) -> Iterator[Annotation]:
    """What decides the exit code first: the runner cuts off the end."""
    record = (report.run.output if report.run.command == "check" else None) or report.run.input
    model = record.path if record else None
    for error in report.ordered_failures:
        yield Annotation("error", error.code, f"{error}. {error.hint}" if error.hint else str(error), model)
    levels = {Status.FAIL: "error", Status.WARN: "warning"}
    check = report.run.check
    said = check.sentence if check and check.sentence in map(str, report.failures) else ""
    for layer in check.layers if check else ():
        if layer.status in levels and not (layer.status is Status.FAIL and layer.because in said):
            yield Annotation(
                levels[layer.status],
                f"check {layer.layer}",
                f"{tables.because(layer)}; measured {layer.measured or 'nothing'}",
                model,
            )
    sites = {identity: outcome.site for identity, outcome in identified(report.run.fold)}
    for identity, outcome in identified(report.run.fold):
        if outcome.refusal and report.violates(identity, outcome):
            reason, blocker = outcome.refusal.reason, tables.in_the_way(outcome.refusal)
            because = f" (in the way: {blocker})" if blocker else ""
            message = f"{tables.title(outcome.site)} is left: {reason.message}{because}. {outcome.refusal.remedy}"
            yield Annotation("error", reason.code, message, *_place(sites[identity], model))
    for finding in report.run.findings:
        if finding.severity in ("error", "warning") and finding.code != REGRESSED:  # annotated above
            message = f"{finding.message}. {finding.remedy}" if finding.remedy else finding.message
            yield Annotation(finding.severity, finding.code, message, *_place(sites.get(finding.affine or ""), model))


def _place(site: Site | None, model: str | None) -> tuple[str | None, int | None]:
    """The line of the network's code that made the node; without it the file of the model."""
    return site.source if site and site.source else (model, None)


def _cut(found: list[Annotation]) -> Iterable[Annotation]:
    if len(found) <= MAX_OF_A_KIND:
        return found
    kept = found[: MAX_OF_A_KIND - 1]
    return [*kept, Annotation(found[0].level, "more", f"and {len(found) - len(kept)} more, in the summary of the step")]


def _data(text: str) -> str:
    return clean(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""The report for build servers: one test suite, one test case per layer of the check and per batch norm.

A batch norm that stays is a failure only where the caller said so (`--fail-on-unfolded`, `--baseline`); otherwise it is
a property of the suite. A command that failed as a whole is a test case of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from bnfold.errors import BnfoldError, Exit, clean
from bnfold.graph import Refusal
from bnfold.outcome import Outcome
from bnfold.reports import tables
from bnfold.reports.report import Report, identified
from bnfold.verify.result import Layer, Status

# What went wrong with the result is a failure, what kept the command from giving one an error.
_FAILURES = (Exit.NOT_EQUIVALENT, Exit.NO_VERDICT, Exit.POLICY, Exit.GATE)


def render(report: Report) -> str:
    """The report as one JUnit `testsuite`."""
    cases = [_command(report), *_layers(report), *_affines(report)]
    suite = Element(
        "testsuite",
        name=f"bnfold {report.run.command}".strip(),
        timestamp=datetime.fromisoformat(report.started).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors=str(sum(case.find("error") is not None for case in cases)),
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=f"{report.elapsed_s:.3f}",
    )
    properties = SubElement(suite, "properties")
    for name, value in _properties(report):
        SubElement(properties, "property", name=name, value=clean(value))
    suite.extend(cases)
    SubElement(suite, "system-out").text = clean(report.headline)
    SubElement(suite, "system-err").text = "\n".join(clean(warning.message) for warning in report.run.warnings)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    run = report.run
    yield "bnfold.status", report.status
    yield "bnfold.exit_code", str(int(report.exit_code))
    for name, record in (("input", run.input), ("output", run.output)):
        if record is not None:
            yield f"bnfold.{name}", record.path
            yield f"bnfold.{name}.sha256", record.sha256 or ""
    if run.fold is not None:
        yield "bnfold.folded", str(run.fold.folded)
        yield "bnfold.left", str(run.fold.left)
    for identity, outcome in _norms(report):
        if outcome.refusal and not report.violates(identity, outcome):
            yield f"bnfold.left.{identity}", outcome.refusal.reason.code


def _norms(report: Report) -> Iterator[tuple[str, Outcome]]:
    return ((identity, outcome) for identity, outcome in identified(report.run.fold) if outcome.is_norm)


def _command(report: Report) -> Element:
    case = _case("bnfold", report.run.command or "usage", report.elapsed_s)
    if error := report.failure:
        kind = "failure" if error.exit_code in _FAILURES else "error"
        SubElement(case, kind, type=error.code, message=clean(str(error))).text = _hint(error)
    return case


def _hint(error: BnfoldError) -> str:
    return clean(error.hint or "")


def _layers(report: Report) -> Iterator[Element]:
    for name, layer in tables.layers(report.run.check) if report.run.check else ():
        case = _case("bnfold.check", name, layer.elapsed_s)
        if layer.status is Status.FAIL:
            SubElement(case, "failure", type="not-equivalent", message=tables.because(layer)).text = _measured(layer)
        elif layer.status is Status.SKIPPED:
            SubElement(case, "skipped", message=tables.because(layer))
        else:
            SubElement(case, "system-out").text = "; ".join(
                text for text in (f"{layer.status}: {tables.because(layer)}", _measured(layer)) if text
            )
        yield case


def _measured(layer: Layer) -> str:
    return f"measured {layer.measured}" if layer.measured else ""


def _affines(report: Report) -> Iterator[Element]:
    would = "would be " if report.run.command == "inspect" else ""
    for identity, outcome in _norms(report):
        case = _case("bnfold.affine", clean(f"{identity} {outcome.site.module or outcome.site.name}"), 0.0)
        refusal = outcome.refusal
        if refusal and report.violates(identity, outcome):
            message = clean(refusal.reason.message)
            SubElement(case, "failure", type=refusal.reason.code, message=message).text = _stays(refusal)
        else:
            SubElement(case, "system-out").text = _stays(refusal) if refusal else f"{would}{_taken(outcome)}"
        yield case


def _stays(refusal: Refusal) -> str:
    way = tables.in_the_way(refusal)
    blocker = f" because of {clean(way)}" if way else ""
    return f"left{blocker}: {refusal.reason.code}; {refusal.remedy}"


def _taken(outcome: Outcome) -> str:
    through = f" through {', '.join(site.name for site in outcome.via)}" if outcome.via else ""
    return clean(f"folded into {', '.join(site.name for site in outcome.into) or 'nothing'}{through}")


def _case(group: str, name: str, seconds: float) -> Element:
    return Element("testcase", classname=group, name=name, time=f"{seconds:.3f}")

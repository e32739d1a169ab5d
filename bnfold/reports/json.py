"""The report for programs: `bnfold.report/1`, every key always present, described by `report.schema.json`.

Seconds and bytes; numbers that JSON cannot hold are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, cast

from bnfold.display import plain
from bnfold.errors import BnfoldError
from bnfold.model import ModelFacts
from bnfold.outcome import FoldReport, Outcome
from bnfold.reports.environment import environment, tool_version
from bnfold.reports.report import SCHEMA, Report, identified
from bnfold.run import FileRecord, Range, Run, Uneven


def render(report: Report) -> str:
    """The report as JSON text, ASCII only."""
    return json.dumps(document(report), indent=2, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of the report, as shipped."""
    text = files("bnfold.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def document(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    run = report.run
    ranges = run.ranges()
    found = {
        "schema": SCHEMA,
        "tool": {"name": "bnfold", "version": tool_version()},
        "command": run.command,
        "argv": list(report.argv),
        "started": report.started,
        "elapsed_s": report.elapsed_s,
        "status": report.status,
        "exit_code": int(report.exit_code),
        "headline": report.headline,
        "error": _error(report),
        "input": _file(run.input),
        "output": _output(run.output),
        "environment": environment(run),
        "summary": _summary(run),
        "affines": [
            _affine(identity, outcome, ranges.get(outcome.site.name)) for identity, outcome in identified(run.fold)
        ],
        "merges": [merged.to_dict() for merged in run.fold.merges] if run.fold else [],
        "unmerged": [each.to_dict() for each in run.fold.unmerged] if run.fold else [],
        "check": run.check.to_dict() if run.check else None,
        "bench": run.bench.to_dict() if run.bench else None,
        "findings": [finding.to_dict() for finding in run.findings],
        "warnings": [{"code": warning.code, "message": warning.message} for warning in run.warnings],
    }
    return cast(dict[str, Any], plain(found))


def _error(report: Report) -> dict[str, Any] | None:
    failure = report.failure
    if failure is None:
        return None
    others = [_told(other) for other in report.failures if other is not failure]
    return {**_told(failure), "details": {**failure.details, **({"also": others} if others else {})} or None}


def _told(error: BnfoldError) -> dict[str, Any]:
    return {"code": error.code, "message": str(error), "hint": error.hint}


def _file(record: FileRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "path": record.path,
        "kind": record.kind,
        "sha256": record.sha256,
        "bytes": record.bytes,
        "ir_version": record.ir_version,
        "opsets": dict(record.opsets),
    }


def _output(record: FileRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    external = [{"path": file.path, "sha256": file.sha256, "bytes": file.bytes} for file in record.external]
    return {**(_file(record) or {}), "external": external}


def _summary(run: Run) -> dict[str, Any]:
    return {
        "batch_norms": run.before.batch_norms if run.before else None,
        "batch_norms_after": run.after.batch_norms if run.after else None,
        **(run.fold.summary if run.fold else dict.fromkeys(FoldReport(()).summary)),
        **{
            name: {"before": _count(run.before, name), "after": _count(run.after, name)}
            for name in ("nodes", "compute_nodes", "parameters", "macs", "bytes")
        },
    }


def _count(facts: ModelFacts | None, name: str) -> int | None:
    return None if facts is None else cast("int | None", getattr(facts, name))


def _affine(identity: str, outcome: Outcome, found: Range | None) -> dict[str, Any]:
    return {
        "id": identity,
        **outcome.to_dict(),
        "range": {"before": found.before if found else None, "after": found.after if found else None},
        "spread": {
            **_uneven(found.spread if found else Uneven()),
            "starved": list(found.spread.starved) if found else [],
        },
        "crest": _uneven(found.crest if found else Uneven()),
        "flags": list(found.flags) if found else [],
    }


def _uneven(found: Uneven) -> dict[str, Any]:
    return {"before": found.before, "after": found.after, "channels": list(found.channels)}

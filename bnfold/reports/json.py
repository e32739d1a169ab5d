"""The report for programs: `bnfold.report/1`, every key always present, described by `report.schema.json`.

Seconds and bytes; numbers that JSON cannot hold are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from bnfold.errors import BnfoldError
from bnfold.model import ModelFacts
from bnfold.outcome import Merged, Outcome, Unmerged
from bnfold.reports.environment import environment, tool_version
from bnfold.reports.report import SCHEMA, Report, identified, others_folded
from bnfold.run import FileRecord, Finding, Range, Run
from bnfold.verify.result import Layer, OutputComparison, ProbeRecord, RuntimeRecord, Verification

if TYPE_CHECKING:
    from bnfold.benchmark import Benchmark


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
    plain = {
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
            _affine(identity, outcome, run.ranges.get(outcome.site.name)) for identity, outcome in identified(run.fold)
        ],
        "merges": [_merge(merged) for merged in run.fold.merges] if run.fold else [],
        "unmerged": [_unmerged(each) for each in run.fold.unmerged] if run.fold else [],
        "check": _check(run.check) if run.check else None,
        "bench": _bench(run.bench) if run.bench else None,
        "findings": [_finding(finding) for finding in run.findings],
        "warnings": [{"code": warning.code, "message": warning.message} for warning in run.warnings],
    }
    return cast(dict[str, Any], _plain(plain))


def _error(report: Report) -> dict[str, Any] | None:
    failure = report.failure
    if failure is None:
        return None
    others = [_told(other) for other in report.failures if other is not failure]
    return {**_told(failure), "details": {"also": others} if others else None}


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
        "affines": len(run.fold.outcomes) if run.fold else None,
        "affines_folded": run.fold.folded + others_folded(run.fold) if run.fold else None,
        "folded": run.fold.folded if run.fold else None,
        "merged": len(run.fold.merges) if run.fold else None,
        "left": run.fold.left if run.fold else None,
        **{
            name: {"before": _count(run.before, name), "after": _count(run.after, name)}
            for name in ("nodes", "compute_nodes", "parameters", "macs", "bytes")
        },
    }


def _count(facts: ModelFacts | None, name: str) -> int | None:
    return None if facts is None else cast("int | None", getattr(facts, name))


def _merge(merged: Merged) -> dict[str, Any]:
    return {
        "rule": merged.rule,
        "nodes": [site.name for site in merged.nodes],
        "into": merged.into.name,
        "module": merged.into.module,
        "macs_saved": merged.macs_saved,
        "parameters_saved": merged.parameters_saved,
        "activation_bytes_saved": merged.activation_bytes_saved,
        "cancellation": merged.cancellation,
    }


def _unmerged(each: Unmerged) -> dict[str, Any]:
    return {"node": each.site.name, "reason": each.refusal.reason.code, "blocker": each.refusal.blocker}


def _affine(identity: str, outcome: Outcome, found: Range | None) -> dict[str, Any]:
    site, refusal = outcome.site, outcome.refusal
    reason = refusal and {
        "code": refusal.reason.code,
        "message": refusal.reason.message,
        "remedy": refusal.reason.remedy,
        "blocker": refusal.blocker,
        "also": list(refusal.also),
    }
    return {
        "id": identity,
        "name": site.name,
        "op": site.op,
        "batch_norm": outcome.is_norm,
        "channels": outcome.channels,
        "axis": outcome.axis,
        "module": site.module,
        "source": {"file": site.source[0], "line": site.source[1]} if site.source else None,
        "outcome": "folded" if outcome.folded else "partly" if outcome.partly else "left",
        "rule": outcome.rule,
        "into": [{"node": taker.name, "op": taker.op} for taker in outcome.into],
        "via": [{"node": crossed.name, "op": crossed.op} for crossed in outcome.via],
        "reason": reason,
        "copied_bytes": outcome.copied_bytes,
        "range": {"before": found.before if found else None, "after": found.after if found else None},
        "spread": dict(zip(("before", "after"), found.spread if found else (None, None), strict=True)),
        "flags": list(found.flags) if found else [],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity,
        "affine": finding.affine,
        "channels": list(finding.channels),
        "message": finding.message,
        "remedy": finding.remedy,
    }


def _check(check: Verification) -> dict[str, Any]:
    return {
        "verdict": check.verdict,
        "sentence": check.sentence,
        "level": check.level,
        "seed": check.seed,
        "layers": [_layer(layer) for layer in check.layers],
        "outputs": [_compared(output) for output in check.outputs],
        "inputs": [_probe(probe) for probe in check.inputs],
        "runtime": _runtime(check.runtime) if check.runtime else None,
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "status": layer.status,
        "figure": layer.figure,
        "limit": layer.limit,
        "affine": layer.affine,
        "channel": layer.channel,
        "because": layer.because,
        "elapsed_s": layer.elapsed_s,
    }


def _compared(output: OutputComparison) -> dict[str, Any]:
    return {
        "name": output.name,
        "dtype": output.dtype,
        "shape": list(output.shape),
        "rmse_reference": output.rmse_reference,
        "rmse_candidate": output.rmse_candidate,
        "ratio": output.ratio,
        "max_abs": output.max_abs,
        "max_rel": output.max_rel,
        "decisions": {
            "compared": output.compared,
            "differ": output.differ,
            "excused": output.excused,
            "top5_differ": output.five_differ,
            "top5_excused": output.five_excused,
        },
    }


def _probe(probe: ProbeRecord) -> dict[str, Any]:
    return {"name": probe.name, "family": probe.family, "shape": list(probe.shape), "sha256": probe.sha256}


def _runtime(runtime: RuntimeRecord) -> dict[str, Any]:
    return {
        "name": runtime.name,
        "version": runtime.version,
        "provider": runtime.provider,
        "optimisation": runtime.optimisation,
        "executor": runtime.executor,
    }


def _bench(bench: Benchmark) -> dict[str, Any]:
    control = bench.control
    return {
        "contenders": [asdict(contender) for contender in bench.contenders],
        "comparisons": [asdict(comparison) for comparison in bench.comparisons],
        "control": {"ratio": control.ratio, "low": control.low, "high": control.high} if control else None,
        "batch": bench.batch,
        "mode": bench.mode,
        "processes": bench.processes,
        "threads": bench.threads,
        "provider": bench.provider,
        "notes": list(bench.notes),
        "interrupted": bench.interrupted,
    }


def _plain(value: Any) -> Any:
    """The value in what JSON can hold: numpy's numbers become Python's, non-finite ones their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value

"""What a fold must keep, the note that it may add, and whether a model decides."""

from __future__ import annotations

import json
from hashlib import sha256

import onnx_ir as ir

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.training import training
from bnfold.outcome import FoldReport

DECIDING = frozenset(
    (
        *("QuantizeLinear", "DynamicQuantizeLinear", "Round", "Floor", "Ceil", "Sign", "ArgMax", "ArgMin", "TopK"),
        *("NonMaxSuppression", "NonZero", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Where"),
    )
)
"""Operators behind which the smallest difference may become a large one."""


NOTE = "bnfold.folded"


def identity(model: ir.Model) -> list[str]:
    """IR version, opsets, names, metadata and graphs for training of a model, one text each; without the note that
    `annotate` adds."""
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
    noted = sorted(model.metadata_props.items())
    metadata = [f"metadata {key}={value}" for key, value in noted if key != NOTE]
    names = [
        f"{what} {getattr(model, what)!r}" for what in ("producer_name", "producer_version", "domain", "doc_string")
    ]
    trains = [f"training graphs {sha256(data).hexdigest()}" for data in training(model)]
    versions = [f"IR version {model.ir_version}", f"opsets {opsets}"]
    return [*versions, *names, f"graph {model.graph.name!r}", *metadata, *trains]


def annotate(model: ir.Model, report: FoldReport) -> ir.Model:
    """A clone whose metadata says, under `bnfold.folded`, which affine went into which operators (JSON)."""
    noted = model.clone()
    folded = {o.site.name: [site.name for site in o.into] for o in report.outcomes if o.folded}
    noted.metadata_props[NOTE] = json.dumps(folded)
    return noted


def decides(model: ir.Model) -> bool:
    """Whether the model rounds, compares or selects somewhere inside."""
    return any(walking.is_standard(node, *DECIDING) for node in walking.nodes(model))

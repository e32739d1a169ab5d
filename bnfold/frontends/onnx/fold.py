"""Folding a model: on a clone, normalised, swept; a model in which nothing folds comes back as it went in."""

from __future__ import annotations

import onnx_ir as ir

from bnfold import folding
from bnfold.folding import FoldOptions
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.constants import Constants
from bnfold.frontends.onnx.graph import OnnxGraph
from bnfold.frontends.onnx.normalise import normalise
from bnfold.frontends.onnx.sequences import as_splits
from bnfold.frontends.onnx.storing import Unused, sweep
from bnfold.outcome import FoldReport


def clone(model: ir.Model) -> ir.Model:
    """A model of its own over the same tensors, which are shared, not copied."""
    return model.clone()


def fold_model(model: ir.Model, options: FoldOptions = FoldOptions()) -> tuple[ir.Model, FoldReport]:
    """Fold every affine that can be folded exactly. The input is not changed; untouched tensors are shared."""
    folded = clone(model)
    names, before = walking.site_names(folded), Unused.of(folded)
    as_splits(folded, names)
    constants = Constants(folded)
    normalise(folded, constants)
    report = folding.fold(OnnxGraph(folded, names, constants), options)
    if not (report.merges or any(outcome.folded or outcome.lowered for outcome in report.outcomes)):
        return clone(model), report
    sweep(folded, before)
    _drop_false_claims(folded, constants)
    walking.keep_names(folded, names)
    return folded, report


def _drop_false_claims(model: ir.Model, constants: Constants) -> None:
    """Forget sizes stored with a value that its inputs contradict: in front of other readers they may stop a runtime
    that has borne with them."""
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            known = constants.inferred.shape(value)
            if known is not None and _contradicts(value.shape, known):
                value.shape = None


def _contradicts(claim: ir.Shape, known: tuple[int | str | None, ...]) -> bool:
    pairs = zip(claim, known, strict=False)
    return len(claim) != len(known) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)

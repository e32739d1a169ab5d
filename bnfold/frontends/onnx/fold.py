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
    walking.keep_names(folded, names)
    return folded, report

"""ONNX, read and written through onnx_ir.

    model = read(path)                      an `onnx_ir.Model`; stored tensors stay on disk or shared until needed
    folded, report = fold_model(model)      the input is never changed
    save(folded, target)

Every other function answers a question about a model: `signature`, `facts`, `evidence`, `as_float64`.
This package is the only one that imports onnx_ir. It never imports torch.
"""

from bnfold.frontends.onnx import deferred  # noqa: F401  (before onnx_ir)
from bnfold.frontends.onnx.contents import contents
from bnfold.frontends.onnx.cutting import Cutting, with_magnitudes
from bnfold.frontends.onnx.evidence import evidence
from bnfold.frontends.onnx.facts import facts, signature, size
from bnfold.frontends.onnx.float64 import as_float64, in_parts
from bnfold.frontends.onnx.fold import clone, fold_model
from bnfold.frontends.onnx.graph import OnnxGraph
from bnfold.frontends.onnx.identity import annotate, decides, identity
from bnfold.frontends.onnx.normalise import normalise, tidy
from bnfold.frontends.onnx.reading import from_bytes, from_proto, read
from bnfold.frontends.onnx.validity import complaint, mixed_types
from bnfold.frontends.onnx.writing import is_one_file, is_written, save, to_bytes, to_proto

__all__ = [
    "Cutting",
    "OnnxGraph",
    "annotate",
    "as_float64",
    "clone",
    "complaint",
    "contents",
    "decides",
    "evidence",
    "facts",
    "fold_model",
    "from_bytes",
    "from_proto",
    "identity",
    "in_parts",
    "is_one_file",
    "is_written",
    "mixed_types",
    "normalise",
    "read",
    "save",
    "signature",
    "size",
    "tidy",
    "to_bytes",
    "to_proto",
    "with_magnitudes",
]

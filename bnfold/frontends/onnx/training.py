"""Graphs for training go through a fold as they came, and what they name stays as it is.

A fold is exact for numbers that do not change, and training changes them. An initializer that a graph for training
names counts as one that is given at run time: no affine that reads it folds, nothing folds into an operator that reads
it, and it is not removed. onnx_ir knows no graphs for training, and drops them without a word.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from bnfold.frontends.onnx.protos import nodes, texts

_KEY = "bnfold.training"
"""In the memory of a graph and of a value, which a clone has too."""


def keep(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Let the model remember the graphs for training of the proto that it was, and which initializers they name."""
    if not proto.training_info:
        return
    model.graph.meta[_KEY] = tuple(info.SerializeToString(deterministic=True) for info in proto.training_info)
    named = set(_names(onnx.ModelProto(training_info=proto.training_info)))
    for name, value in model.graph.initializers.items():
        if name in named:
            value.meta[_KEY] = True


def _names(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    """Every text, so every name: of bindings, of what nodes read, and of what an operator like Gradient is told."""
    yield from texts(proto)
    for node in nodes(proto):
        for attribute in node.attribute:
            yield from (text.decode(errors="replace") for text in (attribute.s, *attribute.strings))


def training(model: ir.Model) -> tuple[bytes, ...]:
    """The graphs for training, each a serialised `TrainingInfoProto`."""
    found: tuple[bytes, ...] = model.graph.meta.get(_KEY, ())
    return found


def is_trained(value: ir.Value) -> bool:
    """Whether a graph for training names the initializer."""
    return _KEY in value.meta


def restore_training(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Write the graphs for training into the proto of the model."""
    for data in training(model):
        proto.training_info.add().ParseFromString(data)

"""Which values are known before the model runs, and what they are.

A value is constant if it is stored, or computed from constants by the few operators that exporters leave behind
(Shape → Expand → CastLike, Sqrt of a variance, a transposed weight). Computing is lazy and bounded: the size of a
result is known before it is made, and a model may not grow beyond a small multiple of what it stores. Floats are
computed in float64, whatever type the model computes them in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.algebra import Array
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.computing import ARITHMETIC, COMPUTED, Arrays, compute
from bnfold.frontends.onnx.inferred import SMALL, Inferred, Known, Types, Unknown
from bnfold.frontends.onnx.rounding import rounded
from bnfold.frontends.onnx.training import is_trained
from bnfold.graph import Reason

MAX_DEPTH = 64
FREE_ELEMENTS = 1 << 20
GROWTH = 8


@dataclass(frozen=True, eq=False)
class Constant:
    """A value known before the model runs: its shape, the type it has in the model, and how to get its numbers.

    `exact` says that no rounding operator was skipped on the way, so that storing it changes nothing.
    """

    shape: tuple[int, ...]
    dtype: ir.DataType
    load: Callable[[], NDArray[Any]]
    exact: bool = True

    def array(self) -> Array:
        """The numbers in float64, of the constant's shape."""
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return np.asarray(self.load(), dtype=np.float64).reshape(self.shape)

    def integers(self) -> tuple[int, ...] | None:
        """The whole numbers, in order; None where the type is another."""
        return tuple(int(number) for number in self.load().reshape(-1)) if self.dtype.is_integer() else None

    @property
    def size(self) -> int:
        return prod(self.shape)


class Constants:
    """Answers, for any value of the model, whether it is constant. Answers are kept.

    `largest` is the number of elements above which nothing is computed from a value; with one, what may be computed in
    all grows with the number of nodes and not with what they store.
    """

    def __init__(self, model: ir.Model, inferred: Types | None = None, largest: float = inf) -> None:
        self.inferred = inferred or known_types(model)
        self._largest = largest
        self._model = model
        self._versions = walking.opset(model)
        self._known: dict[ir.Value, Constant | None] = {}
        self._spent = 0

    def of(self, value: ir.Value) -> Constant | None:
        """The constant, or None where the value is only known at run time."""
        return self._of(value, 0)

    def why_not(self, value: ir.Value) -> Reason:
        """Why a value is no constant."""
        read: ir.Value | None = value
        for _ in range(MAX_DEPTH):
            if read is not None and is_trained(read):
                return Reason.TRAINED
            node = None if read is None else read.producer()
            if node is not None and is_quantised(node):
                return Reason.QUANTISED
            if node is None or not walking.is_standard(node, *COMPUTED) or not node.inputs:
                break
            read = node.inputs[0]
        return Reason.PARAMETER_NOT_CONSTANT

    def is_overridable(self, value: ir.Value) -> bool:
        """Whether the caller, or training, may replace a stored value (before IR version 4 every one was declared)."""
        return is_trained(value) or (
            value.is_graph_input() and not (self._model.ir_version < 4 and value.graph is self._model.graph)
        )

    def _of(self, value: ir.Value, depth: int) -> Constant | None:
        if value not in self._known and depth < MAX_DEPTH:
            tensor = self._stored(value)
            node = value.producer()
            if tensor is not None:
                self._known[value] = Constant(walking.sizes(tensor), tensor.dtype, tensor.numpy)
            elif node is None or not walking.is_standard(node, *COMPUTED) or value is not node.outputs[0]:
                self._known[value] = None
            else:
                self._known[value] = self._computed(node, depth + 1)
        return self._known.get(value)

    def _stored(self, value: ir.Value) -> ir.TensorProtocol | None:
        if value.is_initializer():
            return None if self.is_overridable(value) else value.const_value
        node = value.producer()
        return constant_tensor(node) if node is not None and walking.is_standard(node, "Constant") else None

    def _computed(self, node: ir.Node, depth: int) -> Constant | None:
        if any(attribute.is_ref() for attribute in node.attributes.values()) or None in node.inputs:
            return None
        if node.op_type == "Shape" and node.inputs[0] is not None:
            known = self._of(node.inputs[0], depth)
            return _measured(node, known.shape if known else self.inferred.shape(node.inputs[0]))
        like = node.op_type == "CastLike"
        read = node.inputs[:1] if like else node.inputs
        inputs = [self._of(value, depth) for value in read if value is not None]
        dtype = self._dtype(node, inputs, depth)
        if dtype is None or any(known is None or known.size > self._largest for known in inputs):
            return None
        constants = [constant for constant in inputs if constant is not None]
        try:
            result = self._evaluate(node, [_wide(constant) for constant in constants], dtype)
        except (ValueError, TypeError, LookupError, RuntimeError, NotImplementedError):
            return None  # what cannot be computed now fails in the same way when the model runs
        if result is None:
            return None
        exact = not _rounds(node, result, dtype) and all(constant.exact for constant in constants)
        if result.size <= SMALL or any(value is None or self._stored(value) is None for value in read):
            return Constant(result.shape, dtype, lambda: result, exact)
        # what is large and soon made again is not held
        return Constant(
            result.shape, dtype, lambda: self._make(node, [_wide(constant) for constant in constants], dtype), exact
        )

    def _dtype(self, node: ir.Node, inputs: Sequence[Constant | None], depth: int) -> ir.DataType | None:
        if node.op_type == "Size":
            return ir.DataType.INT64
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int()) if "to" in node.attributes else None
        if node.op_type == "CastLike" and node.inputs[1] is not None:
            target = self._of(node.inputs[1], depth)
            return target.dtype if target else self.inferred.dtype(node.inputs[1])
        if node.op_type == "ConstantOfShape":
            value = node.attributes.get("value")
            return value.as_tensor().dtype if value else ir.DataType.FLOAT
        position = 1 if node.op_type == "Where" else 0
        first = inputs[position] if len(inputs) > position else None
        return first.dtype if first else None

    def _evaluate(self, node: ir.Node, inputs: Arrays, dtype: ir.DataType) -> NDArray[Any] | None:
        size = COMPUTED[node.op_type](node, inputs)
        if self._spent + size > self._budget:
            return None
        self._spent += size
        return self._make(node, inputs, dtype)

    def _make(self, node: ir.Node, inputs: Arrays, dtype: ir.DataType) -> NDArray[Any]:
        return compute(node, self._versions.get(node, walking.model_opset(self._model)), inputs, dtype)

    @cached_property
    def _budget(self) -> float:
        if self._largest < inf:
            return FREE_ELEMENTS + self._largest * len(self._model.graph)
        return FREE_ELEMENTS + GROWTH * sum(prod(walking.sizes(each)) for each in walking.stored_tensors(self._model))


def known_types(model: ir.Model, *, single: bool = False) -> Inferred:
    """Types inferred with the help of the integers that the model computes from constants: shapes, axes, pads; with
    `single`, at batch 1. The sizes of values are among these constants where those that need no value leave something
    open."""
    stored = Inferred(model, _integers(Constants(model, Unknown(), SMALL)), single=single)
    if not any(walking.is_standard(node, "Shape", "CastLike") for node in walking.nodes(model)):
        return stored
    return Inferred(model, _integers(Constants(model, stored, SMALL)), stored, single=single)


def _integers(constants: Constants) -> Known:
    def integers(value: ir.Value) -> ir.TensorProtocol | None:
        known = constants.of(value)
        small = known is not None and known.dtype == ir.DataType.INT64 and known.size <= SMALL
        return ir.Tensor(np.asarray(known.load()), name=value.name) if known is not None and small else None

    return integers


def _measured(node: ir.Node, shape: tuple[int | str | None, ...] | None) -> Constant | None:
    """Shape of a value, where the sizes it gives are known."""
    start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
    given = None if shape is None else shape[start:end]
    sizes = [size for size in given or () if isinstance(size, int)]
    if given is None or len(sizes) != len(given):
        return None
    return Constant((len(sizes),), ir.DataType.INT64, lambda: np.array(sizes, dtype=np.int64))


def is_quantised(node: ir.Node) -> bool:
    """Whether the node computes on quantised numbers, or makes or unmakes them."""
    name = node.op_type
    return name.startswith(("Quantize", "Dequantize", "DynamicQuantize", "QLinear", "QGemm")) or name.endswith(
        "Integer"
    )


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor that a Constant node holds, None where it holds something else."""
    if len(node.attributes) != 1:
        return None
    name, attribute = next(iter(node.attributes.items()))
    if attribute.is_ref():
        return None
    if name == "value":
        return attribute.as_tensor()
    if name in ("value_float", "value_floats"):
        return ir.Tensor(np.array(attribute.value, dtype=np.float32))
    if name in ("value_int", "value_ints"):
        return ir.Tensor(np.array(attribute.value, dtype=np.int64))
    return None


def _rounds(node: ir.Node, result: NDArray[Any], dtype: ir.DataType) -> bool:
    """Whether the model rounds where float64 did not: in arithmetic, and in casts that lose digits."""
    if dtype not in walking.FLOATS:
        return False
    if node.op_type in ("Cast", "CastLike"):
        return not np.array_equal(rounded(result, dtype).astype(np.float64), result, equal_nan=True)
    return node.op_type in ARITHMETIC


def _wide(constant: Constant) -> NDArray[Any]:
    return constant.array() if constant.dtype in walking.FLOATS else np.asarray(constant.load())

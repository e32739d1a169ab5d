"""A model to bytes or to a file; the same model always to the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import EnvironmentFailure, Rejected
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.reading import read
from bnfold.frontends.onnx.sparse import SparseTensor, restore
from bnfold.frontends.onnx.training import restore_training, training
from bnfold.frontends.onnx.wire import GRAPH, INITIALIZER, LARGE_BYTES, RAW_DATA, begins

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)
INLINE_BYTES = 256
"""Tensors that are no larger stay in the model where others go to a file beside it."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The proto of a model. Tensors that lie in files are named, not read."""
    proto: onnx.ModelProto = ir.to_proto(model)
    restore(model, proto)
    restore_training(model, proto)
    return proto


def to_bytes(model: ir.Model) -> bytes:
    """The bytes of the `.onnx` file, equal for equal models. External tensors are named, not read.

    Raises `Rejected` (`too-large`) where the model needs external data to be written.
    """
    if _inline_bytes(model) > PROTOBUF_LIMIT:
        raise Rejected("the model is larger than 2 GB, so it must be saved with external data", code="too-large")
    file = io.BytesIO()
    _write_streamed(model, file)
    return file.getvalue()


def save(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write the model, and its tensors beside it as `NAME.data` if it came that way or is too large for one file.

    The files written. The names inside are relative, so that the files can be moved together; do not write over a file
    that the model still reads.
    """
    if is_one_file(model):
        with path.open("wb") as file:
            _write_streamed(model, file)
        return (path,)
    data = path.with_name(path.name + ".data")
    with _standing_in(_small_tensors(model) | _sparse_tensors(model)):
        ir.save(model, path, external_data=data.name, size_threshold_bytes=INLINE_BYTES)
    proto = onnx.load(path, load_external_data=False)
    restore(model, proto)
    restore_training(model, proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return (path, data) if data.exists() else (path,)


def is_written(model: ir.Model, path: Path) -> bool:
    """Whether a file can be read and holds the numbers of the model, bit by bit."""
    try:
        again = read(path, limits=False, checked=False)
    except (Rejected, EnvironmentFailure):
        return False
    one, other = map(_places, (model, again))
    return one.keys() == other.keys() and all(_is_same(one[place], other[place]) for place in one)


def _places(model: ir.Model) -> dict[tuple[int, str | int], ir.TensorProtocol]:
    """Every tensor by the number of its graph and its name, or by its number where a node holds it."""
    stored = {
        (number, value.name or ""): value.const_value
        for number, graph in enumerate(walking.graphs(model))
        for value in graph.initializers.values()
        if value.const_value is not None
    }
    return stored | {(-1, number): tensor for number, tensor in enumerate(walking.attribute_tensors(model))}


def _is_same(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    if one.dtype is not other.dtype or walking.sizes(one) != walking.sizes(other):
        return False
    if one.dtype is ir.DataType.STRING:
        return bool(np.array_equal(one.numpy(), other.numpy()))
    first, second = (np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8) for tensor in (one, other))
    return np.array_equal(first, second)


def _write_streamed(model: ir.Model, file: BinaryIO) -> None:
    """The bytes of a model without another copy of its numbers in memory, let alone the two that a proto and its
    serialised form are.

    Protobuf takes the fields of a message in any order, so the initializers come last, one by one; the numbers of a
    large one go straight from where they are into its field `raw_data`.
    """
    stored = {value: value.const_value for value in model.graph.initializers.values()}
    aside = {value: tensor for value, tensor in stored.items() if tensor is not None and _is_streamed(tensor)}
    with _standing_in({value: _empty(value, tensor) for value, tensor in aside.items()}):
        proto = to_proto(model)
    large = {value.name or "": tensor for value, tensor in aside.items()}
    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    file.write(proto.SerializeToString(deterministic=True))
    heads = [_head(tensor, large.get(tensor.name)) for tensor in tensors]
    sizes = [
        len(head) + (large[tensor.name].nbytes if tensor.name in large else 0)
        for tensor, head in zip(tensors, heads, strict=True)
    ]
    opened = [begins(INITIALIZER, size) for size in sizes]
    file.write(begins(GRAPH, len(graph) + sum(map(len, opened)) + sum(sizes)) + graph)
    for tensor, head, begin in zip(tensors, heads, opened, strict=True):
        file.write(begin + head)
        if tensor.name in large:
            file.write(large[tensor.name].tobytes())


@contextmanager
def _standing_in(tensors: Mapping[ir.Value, ir.TensorProtocol]) -> Iterator[None]:
    """Let values hold other tensors for a while."""
    before = {value: value.const_value for value in tensors}
    for value, tensor in tensors.items():
        value.const_value = tensor
    try:
        yield
    finally:
        for value, original in before.items():
            value.const_value = original


def _empty(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """All that a tensor says, without its numbers."""
    empty = ir.Tensor(np.zeros(0, np.float32), name=value.name, doc_string=tensor.doc_string)
    empty.metadata_props.update(tensor.metadata_props)
    return empty


def _is_streamed(tensor: ir.TensorProtocol) -> bool:
    plain = tensor.dtype is not ir.DataType.STRING and not isinstance(tensor, SparseTensor)
    return plain and tensor.nbytes >= LARGE_BYTES


def _head(proto: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> bytes:
    """A serialised tensor; of a large one all but its numbers, and how many bytes of these follow."""
    if tensor is None:
        whole: bytes = proto.SerializeToString(deterministic=True)
        return whole
    proto.ClearField("raw_data")
    proto.dims[:] = walking.sizes(tensor)
    proto.data_type = tensor.dtype.value
    head: bytes = proto.SerializeToString(deterministic=True)
    return head + begins(RAW_DATA, tensor.nbytes)


def _small_tensors(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    """The small tensors of other files, read: `ir.save` would read them and close the files, which fails while
    somebody looks at them."""
    stored = {value: value.const_value for graph in model.graphs() for value in graph.initializers.values()}
    return {
        value: ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
        for value, tensor in stored.items()
        if tensor is not None and _is_small(tensor)
    }


def _sparse_tensors(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    """In the place of the tensors that stay sparse, such as take no space."""
    stored = {value: value.const_value for value in model.graph.initializers.values()}
    return {value: _empty(value, tensor) for value, tensor in stored.items() if isinstance(tensor, SparseTensor)}


def _is_small(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= INLINE_BYTES


def is_one_file(model: ir.Model) -> bool:
    """Whether the model is written as one file: it is not too large for that, and came so."""
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in walking.stored_tensors(model))
    return not external and _inline_bytes(model) <= PROTOBUF_LIMIT


def _inline_bytes(model: ir.Model) -> int:
    tensors = walking.stored_tensors(model)
    inline = sum(tensor.nbytes for tensor in tensors if not isinstance(tensor, ir.ExternalTensor))
    return inline + sum(map(len, training(model)))

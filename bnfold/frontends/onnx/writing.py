"""A model to bytes or to a file; the same model always to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import Rejected
from bnfold.frontends.onnx import walking

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)
INLINE_BYTES = 256
"""Tensors that are no larger stay in the model where others go to a file beside it."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The proto of a model. Tensors that lie in files are named, not read."""
    return ir.to_proto(model)


def to_bytes(model: ir.Model) -> bytes:
    """The bytes of the `.onnx` file, equal for equal models. External tensors are named, not read.

    Raises `Rejected` (`too-large`) where the model needs external data to be written.
    """
    if _inline_bytes(model) > PROTOBUF_LIMIT:
        raise Rejected("the model is larger than 2 GB, so it must be saved with external data", code="too-large")
    data: bytes = to_proto(model).SerializeToString(deterministic=True)
    return data


def save(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write the model, and its tensors beside it as `NAME.data` if it came that way or is too large for one file.

    The files written. The names inside are relative, so that the files can be moved together; do not write over a file
    that the model still reads.
    """
    if is_one_file(model):
        path.write_bytes(to_bytes(model))
        return (path,)
    data = path.with_name(path.name + ".data")
    with _small_tensors_read(model):
        ir.save(model, path, external_data=data.name, size_threshold_bytes=INLINE_BYTES)
    return (path, data) if data.exists() else (path,)


@contextmanager
def _small_tensors_read(model: ir.Model) -> Iterator[None]:
    """`ir.save` reads small tensors of other files and closes these, which fails while somebody looks at them."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    small = [(value, tensor) for value in values if (tensor := value.const_value) is not None and _is_small(tensor)]
    for value, tensor in small:
        value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
    try:
        yield
    finally:
        for value, tensor in small:
            value.const_value = tensor


def _is_small(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= INLINE_BYTES


def is_one_file(model: ir.Model) -> bool:
    """Whether the model is written as one file: it is not too large for that, and came so."""
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in walking.stored_tensors(model))
    return not external and _inline_bytes(model) <= PROTOBUF_LIMIT


def _inline_bytes(model: ir.Model) -> int:
    tensors = walking.stored_tensors(model)
    return sum(tensor.nbytes for tensor in tensors if not isinstance(tensor, ir.ExternalTensor))

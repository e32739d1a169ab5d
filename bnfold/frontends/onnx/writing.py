"""A model to bytes or to a file; the same model always to the same bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from bnfold.errors import Rejected
from bnfold.frontends.onnx import walking

PROTOBUF_LIMIT = (1 << 31) - (1 << 20)


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
    ir.save(model, path, external_data=data.name)
    return (path, data) if data.exists() else (path,)


def is_one_file(model: ir.Model) -> bool:
    """Whether the model is written as one file: it is not too large for that, and came so."""
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in walking.stored_tensors(model))
    return not external and _inline_bytes(model) <= PROTOBUF_LIMIT


def _inline_bytes(model: ir.Model) -> int:
    tensors = walking.stored_tensors(model)
    return sum(tensor.nbytes for tensor in tensors if not isinstance(tensor, ir.ExternalTensor))

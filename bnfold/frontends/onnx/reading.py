"""Any file to a model that can be trusted to be one, or to one sentence that says why not.

Nothing is read from outside the folder of the file, and large tensors stay where they are until they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bnfold.errors import EnvironmentFailure, Rejected
from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.external import check_external
from bnfold.frontends.onnx.limits import check_limits
from bnfold.frontends.onnx.protos import bits_of, graphs, nbytes, nodes, tensors, texts, words
from bnfold.frontends.onnx.sparse import are_misplaced, densified, fill
from bnfold.frontends.onnx.training import keep
from bnfold.frontends.onnx.wire import varint, without_numbers

OPAQUE = "bnfold.opaque"
INVALID = "invalid-model"
TYPED: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.COMPLEX128: "double_data",
}
"""Where numbers lie that are not raw; all others in `int32_data`, several in one where they have less than 6 bits."""
PARTS: dict[int, int] = {onnx.TensorProto.COMPLEX64: 2, onnx.TensorProto.COMPLEX128: 2}
PROTOBUF_LIMIT = 1 << 31
COUNTABLE = 1 << 59
"""More numbers than an address space has bytes for."""


def read(path: Path, linked: Sequence[Path] = (), *, limits: bool = True, checked: bool = True) -> ir.Model:
    """The model in a file; `linked` are folders into which links of data files may lead. What was checked before it was
    written need not be `checked` again.

    Raises `Rejected` (codes `not-found`, `is-directory`, `empty-file`, `truncated`, `not-onnx`, `too-large`, `limit`,
    `invalid-model`, `unsupported-model`, `external-data`) and `EnvironmentFailure` (`unreadable`).
    """
    small, numbers = without_numbers(_bytes(path))
    proto = _parse(small, path.name)
    if limits:
        check_limits(proto, path.name)
    check_external(proto, path, linked)
    model = _model(proto, path.name, numbers, checked=checked)
    for tensor in walking.stored_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = "" if Path(tensor.location).is_absolute() else path.parent
    return model


def from_bytes(data: bytes, name: str = "the model") -> ir.Model:
    """The model of a serialised `ModelProto` without external data."""
    small, numbers = without_numbers(data)
    return _model(_parse(small, name), name, numbers)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The model of a proto, which must not change afterwards: its tensors are shared."""
    return _model(proto, "the model", {})


def _model(proto: onnx.ModelProto, name: str, numbers: Mapping[int, memoryview], *, checked: bool = True) -> ir.Model:
    """The model of a proto; `numbers` are those of initializers that it holds without them, by position."""
    _refuse_unsupported(proto, name)
    proto, sparse = densified(proto, name)
    apart = _kept_apart(proto, numbers)
    if checked:
        _check(proto, name, apart, sparse.keys())
    try:
        model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        raise Rejected(f"{name} cannot be represented: {_first_line(error)}", code="unsupported-model") from error
    for index, own in apart.items():
        tensor = proto.graph.initializer[index]
        model.graph.initializers[tensor.name].const_value = _over(tensor, own)
    fill(model, sparse)
    keep(model, proto)
    _forget_derived_types(model, proto)
    return model


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise Rejected(f"{path} is a directory, not a model file", code="is-directory")
    try:
        size = path.stat().st_size
        if size >= PROTOBUF_LIMIT:
            raise Rejected(
                f"{path.name} is larger than 2 GB, which no ONNX file can be",
                code="too-large",
                hint="store its tensors as external data",
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise Rejected(f"{path} does not exist", code="not-found") from None
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error.strerror}", code="unreadable") from error
    if not data:
        raise Rejected(f"{path.name} is empty", code="empty-file")
    return data


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError:
        if _ends_early(data):
            raise Rejected(f"{name} is truncated: it ends inside the model", code="truncated") from None
        raise Rejected(f"{name} is not an ONNX model", code="not-onnx") from None
    if not proto.ir_version or not proto.HasField("graph"):
        raise Rejected(f"{name} is not an ONNX model", code="not-onnx")
    if not proto.opset_import:
        raise Rejected(f"{name} names no operator set: it is truncated, or older than 2017", code="truncated")
    return proto


def _ends_early(data: bytes) -> bool:
    """Whether the bytes begin as the fields of a ModelProto and then stop inside one."""
    fields, position = onnx.ModelProto.DESCRIPTOR.fields_by_number, 0
    try:
        while position < len(data):
            tag, position = varint(data, position)
            field = fields.get(tag >> 3)
            if field is None or tag & 7 != (0 if field.cpp_type == field.CPPTYPE_INT64 else 2):
                return False
            number, position = varint(data, position)
            if tag & 7 == 2:
                position += number
    except ValueError:
        return True
    return position > len(data)


def _refuse_unsupported(proto: onnx.ModelProto, name: str) -> None:
    """What would be lost in silence on the way through onnx_ir."""
    trained = tensors(onnx.ModelProto(training_info=proto.training_info))
    lost = {
        "sparse tensors in a subgraph, in a function or in an operator": are_misplaced(proto),
        "graphs for training with data in other files": any(
            tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in trained
        ),
    }
    for what, present in lost.items():
        if present:
            raise Rejected(f"{name} holds {what}, which bnfold does not carry over", code="unsupported-model")


def _kept_apart(proto: onnx.ModelProto, numbers: Mapping[int, memoryview]) -> dict[int, memoryview]:
    """The numbers that need not be in the proto; those of tensors that are not plain arrays are put back."""
    apart = {}
    for index, own in numbers.items():
        tensor = proto.graph.initializer[index]
        if (bits_of(tensor) or 1) % 8 or tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.raw_data = own.tobytes()
        else:
            apart[index] = own
    return apart


def _over(tensor: onnx.TensorProto, numbers: memoryview) -> ir.TensorProtocol:
    """A tensor over numbers that lie elsewhere."""
    dtype = ir.DataType(tensor.data_type)
    array = np.frombuffer(numbers, dtype.numpy()).reshape(tuple(tensor.dims))
    found = ir.Tensor(array, dtype=dtype, name=tensor.name, doc_string=tensor.doc_string or None)
    found.metadata_props.update((entry.key, entry.value) for entry in tensor.metadata_props)
    return found


def _check(proto: onnx.ModelProto, name: str, numbers: Mapping[int, memoryview], sparse: Set[str]) -> None:
    if any(not isinstance(text, str) for text in texts(proto)) or not all(map(_is_text, words(proto))):
        raise Rejected(f"{name} is damaged: a name in it is no text", code=INVALID)
    declared = len(proto.graph.initializer)
    for index, tensor in enumerate(tensors(proto)):
        is_sparse = index < declared and tensor.name in sparse
        complaint = None if is_sparse else _complaint(tensor, numbers.get(index))
        if complaint is not None:
            raise Rejected(f"{name} is damaged: tensor {tensor.name!r} has {complaint}", code=INVALID)
    try:
        onnx.checker.check_model(outline(proto))
    except onnx.checker.ValidationError as error:
        raise Rejected(f"{name} is not a valid ONNX model: {_first_line(error)}", code=INVALID) from error


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _complaint(tensor: onnx.TensorProto, apart: memoryview | None) -> str | None:
    """What is wrong with a tensor, whose numbers may lie apart from it."""
    count, bits = prod(tensor.dims), bits_of(tensor)
    if min(tensor.dims, default=0) < 0:
        return "a size below zero"
    if prod(size or 1 for size in tensor.dims) >= COUNTABLE:  # which no array may have, not even where another is 0
        return "sizes beyond what can be counted"
    if bits is None and tensor.data_type != onnx.TensorProto.STRING:
        return "no type that ONNX knows"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    if bits is None:
        complete = len(tensor.string_data) == count and not tensor.HasField("raw_data")
    elif apart is not None or tensor.HasField("raw_data"):
        complete = len(tensor.raw_data if apart is None else apart) == nbytes(tensor)
    else:
        typed = len(getattr(tensor, TYPED.get(tensor.data_type, "int32_data")))
        complete = typed == count * PARTS.get(tensor.data_type, 1) if bits >= 6 else typed == nbytes(tensor)
    return None if complete else "too little or too much data"


def outline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model for the checker: without tensors, with operators that this onnx does not know made opaque.

    The checker refuses unknown operators of the default domain and values whose rank is not declared; both run.
    """
    outline = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    outline.opset_import.add(domain=OPAQUE, version=1)
    graph, claimed = outline.graph, {info.name for info in proto.graph.input}
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    for tensor in proto.graph.initializer:
        if tensor.name not in claimed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for info in (*graph.input, *graph.output):
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    for function in outline.functions:
        function.opset_import.add(domain=OPAQUE, version=1)
    imports = {opset.domain: opset.version for opset in proto.opset_import}
    for node in nodes(outline):
        if node.domain in walking.STANDARD_DOMAINS and not _has_schema(node.op_type, imports):
            node.domain = OPAQUE
    return outline


def _has_schema(op_type: str, imports: dict[str, int]) -> bool:
    version = max((imports.get(domain, 0) for domain in walking.STANDARD_DOMAINS), default=0)
    if not onnx.defs.has(op_type, version, ""):
        return False
    return not onnx.defs.get_schema(op_type, version, "").deprecated


def _forget_derived_types(model: ir.Model, proto: onnx.ModelProto) -> None:
    """onnx_ir writes a value_info for every initializer; the file keeps those that it had."""
    declared = {info.name for graph in graphs(proto) for info in (*graph.value_info, *graph.input, *graph.output)}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.name not in declared:
                value.type = value.shape = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")

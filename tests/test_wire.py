"""Numbers that stay where they are in the file are the ones that a parser of the whole file finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bnfold.errors import Rejected
from bnfold.frontends import onnx as frontend
from bnfold.frontends.onnx.computing import FREQUENT, compute
from bnfold.frontends.onnx.wire import LARGE_BYTES, begins, without_numbers

SIZES = (160, 480)


def tensor(dtype: str, name: str = "large", **more: str) -> TensorProto:
    kind = ir.DataType[dtype]
    numbers = np.random.default_rng(0).integers(0, 2, SIZES).astype(kind.numpy())
    proto = ir.serde.serialize_tensor(ir.Tensor(numbers, dtype=kind, name=name, **more))
    assert proto.HasField("raw_data")
    return proto


def model(*tensors: TensorProto) -> onnx.ModelProto:
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [data], [result], [*tensors])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def told() -> TensorProto:
    proto = tensor("FLOAT", doc_string="said")
    proto.metadata_props.add(key="key", value="kept")
    return proto


def typed() -> TensorProto:
    return helper.make_tensor("large", TensorProto.FLOAT, SIZES, np.ones(SIZES).reshape(-1))


ROWS: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    **{dtype: (lambda dtype=dtype: model(tensor(dtype)), 1) for dtype in ("FLOAT", "BFLOAT16", "INT64", "BOOL")},
    "half a byte a number": (lambda: model(*(tensor("INT4", name) for name in "ab")), 0),
    "said of it": (lambda: model(told()), 1),
    "small ones between": (lambda: model(typed(), tensor("FLOAT", "second"), tensor("DOUBLE", "third")), 2),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_model_is_the_one_that_a_parser_finds(row: str) -> None:
    build, apart = ROWS[row]
    proto = build()
    small, numbers = without_numbers(proto.SerializeToString())
    assert len(numbers) == apart
    assert len(small) < LARGE_BYTES or not apart or row == "small ones between"
    assert frontend.to_bytes(frontend.from_bytes(proto.SerializeToString())) == frontend.to_bytes(
        frontend.from_proto(proto)
    )


def test_large_numbers_are_not_copied() -> None:
    data = model(tensor("FLOAT")).SerializeToString()
    stored = frontend.from_bytes(data).graph.initializers["large"].const_value
    assert stored is not None
    assert np.shares_memory(stored.numpy(), np.frombuffer(data, np.uint8))


def test_a_tensor_with_too_few_numbers_is_refused(tmp_path: Path) -> None:
    proto = model(tensor("FLOAT"))
    proto.graph.initializer[0].dims[0] += 1
    (tmp_path / "short.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(Rejected, match="too little or too much data"):
        frontend.read(tmp_path / "short.onnx")


@pytest.mark.parametrize("names", [("",), ("twice", "twice")])
def test_names_that_are_none_are_refused(names: tuple[str, ...]) -> None:
    data = model(*(tensor("FLOAT", name) for name in names)).SerializeToString()
    with pytest.raises(Rejected, match="not a valid ONNX model"):
        frontend.from_bytes(data)


def split() -> bytes:
    """One graph in two fields, which a parser merges."""
    whole = model(tensor("FLOAT"))
    first, second = onnx.GraphProto(), onnx.GraphProto()
    first.CopyFrom(whole.graph)
    del first.initializer[:]
    second.initializer.extend(whole.graph.initializer)
    whole.ClearField("graph")
    parts = [part.SerializeToString() for part in (first, second)]
    return whole.SerializeToString() + b"".join(begins(7, len(part)) + part for part in parts)


def twice() -> bytes:
    """A tensor with two fields of numbers, of which a parser takes the last."""
    large = tensor("FLOAT")
    data = large.SerializeToString()
    large.raw_data = bytes(len(large.raw_data))
    data += large.SerializeToString()
    graph = model().graph.SerializeToString() + begins(5, len(data)) + data
    whole = model()
    whole.ClearField("graph")
    return whole.SerializeToString() + begins(7, len(graph)) + graph


def number() -> bytes:
    """A number where a tensor should be, which a parser passes over."""
    whole = model(tensor("FLOAT"))
    graph = b"\x28\x01" + whole.graph.SerializeToString()
    whole.ClearField("graph")
    return whole.SerializeToString() + begins(7, len(graph)) + graph


UNUSUAL: dict[str, Callable[[], bytes]] = {
    "a graph in two pieces": split,
    "numbers in two pieces": twice,
    "a number that is no tensor": number,
    "nothing": bytes,
    "no such kind of field": lambda: b"\x0f" * 20,
    "a number without end": lambda: b"\xff" * 20,
    "cut": lambda: model(tensor("FLOAT")).SerializeToString()[:-1],
}


@pytest.mark.parametrize("row", UNUSUAL)
def test_what_no_writer_writes_is_left_to_the_parser(row: str) -> None:
    data = UNUSUAL[row]()
    assert without_numbers(data) == (data, {})


COMPUTED: list[tuple[str, list[np.ndarray], dict[str, object]]] = [
    ("Reshape", [np.arange(12.0).reshape(3, 4), np.array([0, 2, -1])], {}),
    ("Reshape", [np.zeros((0, 4)), np.array([4, 0])], {"allowzero": 1}),
    ("Transpose", [np.arange(24.0).reshape(2, 3, 4)], {}),
    ("Transpose", [np.arange(24.0).reshape(2, 3, 4)], {"perm": [1, 2, 0]}),
    ("Squeeze", [np.arange(3).reshape(1, 3, 1), np.array([0])], {}),
    ("Squeeze", [np.arange(3).reshape(1, 3, 1)], {}),
    ("Unsqueeze", [np.arange(3), np.array([0, -1])], {}),
    ("Concat", [np.arange(3), np.arange(2)], {"axis": 0}),
    ("Concat", [np.ones((2, 3)), np.zeros((2, 1))], {"axis": -1}),
    ("Gather", [np.arange(12).reshape(3, 4), np.array([[0, -1]])], {"axis": 1}),
    ("Gather", [np.arange(3), np.array(-1)], {}),
    ("Add", [np.arange(3), np.array([5])], {}),
    ("Sub", [np.arange(3.0), np.array(0.5)], {}),
    ("Mul", [np.arange(3).reshape(3, 1), np.arange(2)], {}),
]


@pytest.mark.parametrize("row", range(len(COMPUTED)))
def test_what_is_computed_here_is_what_the_reference_computes(row: int) -> None:
    from onnx.reference.ops import load_op

    op, inputs, attributes = COMPUTED[row]
    node = ir.node(op, [None] * len(inputs), attributes)
    dtype = ir.DataType.from_numpy(inputs[0].dtype)
    found, expected = compute(node, 21, inputs, dtype), load_op("", op, 21).eval(*inputs, **attributes)
    assert found is not None
    np.testing.assert_array_equal(found, expected, strict=True)


def test_every_operator_computed_here_has_a_row() -> None:
    assert {op for op, _, _ in COMPUTED} == set(FREQUENT)

"""What no fold needs is in the result as it was in the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_build import feeds_of, run64

from bnfold.errors import Rejected
from bnfold.frontends import onnx as frontend

PLACES = ((0, 1), (1, 2), (3, 4))


def indices(flat: bool) -> TensorProto:
    if flat:
        return helper.make_tensor("", TensorProto.INT64, [3], [row * 5 + column for row, column in PLACES])
    return helper.make_tensor("", TensorProto.INT64, [3, 2], np.array(PLACES).reshape(-1))


def with_sparse(where: TensorProto, *, norm: bool, sizes: Sequence[int] = (4, 5)) -> onnx.ModelProto:
    """A product with a sparse matrix, and a batch norm behind it or not."""
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, -2.0, 3.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size]) for name, size in (("x", 4), ("y", 5))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m" if norm else "y"], name="product")]
    statistics = {"gamma": 2.0, "beta": 0.5, "mean": 0.1, "variance": 1.5}
    stored = [numpy_helper.from_array(np.full(5, number, np.float32), name) for name, number in statistics.items()]
    if norm:
        nodes.append(helper.make_node("BatchNormalization", ["m", *statistics], ["y"], name="norm"))
    sparse = [helper.make_sparse_tensor(values, where, sizes)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored, sparse_initializer=sparse)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("flat", [True, False])
def test_a_sparse_initializer_is_written_as_it_came(flat: bool, tmp_path: Path) -> None:
    proto = with_sparse(indices(flat), norm=False)
    model = frontend.from_proto(proto)
    assert frontend.to_proto(model).graph.sparse_initializer == proto.graph.sparse_initializer
    (path,) = frontend.save(model, tmp_path / "a.onnx")
    assert onnx.load(path).graph.sparse_initializer == proto.graph.sparse_initializer
    assert frontend.is_written(model, path)


@pytest.mark.parametrize("flat", [True, False])
def test_a_fold_into_a_sparse_matrix_makes_it_dense(flat: bool) -> None:
    model = frontend.from_proto(with_sparse(indices(flat), norm=True))
    folded, report = frontend.fold_model(model)
    assert report.folded == 1
    assert not frontend.to_proto(folded).graph.sparse_initializer
    feeds = feeds_of(folded)
    scale = 2.0 / np.sqrt(np.float64(np.float32(1.5)) + np.float64(np.float32(1e-5)))
    dense = np.zeros((4, 5))
    dense[tuple(np.array(PLACES).T)] = 1, -2, 3
    expected = feeds["x"] @ dense * scale + 0.5 - np.float64(np.float32(0.1)) * scale
    np.testing.assert_allclose(run64(folded, feeds)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("where", "sizes", "code"),
    [
        (helper.make_tensor("", TensorProto.INT64, [3], [0, 1, 20]), (4, 5), "invalid-model"),
        (helper.make_tensor("", TensorProto.INT64, [3], [0, 1, -1]), (4, 5), "invalid-model"),
        (helper.make_tensor("", TensorProto.INT64, [2], [0, 1]), (4, 5), "invalid-model"),
        (indices(flat=False), (1 << 20, 1 << 20), "limit"),
        (indices(flat=False), (-4, 5), "limit"),
    ],
    ids=["behind the end", "before the beginning", "too few", "would be too large", "below zero"],
)
def test_a_sparse_tensor_that_contradicts_itself(where: TensorProto, sizes: tuple[int, ...], code: str) -> None:
    with pytest.raises(Rejected) as caught:
        frontend.from_proto(with_sparse(where, norm=False, sizes=sizes))
    assert caught.value.code == code


def test_a_stored_tensor_that_is_an_output_keeps_its_type() -> None:
    stored = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    result = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([], "g", [], [result], [stored])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert frontend.to_proto(frontend.from_proto(proto)).graph.output == proto.graph.output

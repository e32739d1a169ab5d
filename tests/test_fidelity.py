"""What no fold needs is in the result as it was in the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_build import Net, feeds_of, run64

import bnfold
from bnfold.dialects import dialect_of
from bnfold.errors import Rejected
from bnfold.frontends import onnx as frontend
from bnfold.graph import Reason
from bnfold.verification import Side, derived_again
from bnfold.verify.result import Status

PLACES = ((0, 1), (1, 2), (3, 4))


def indices(flat: bool) -> TensorProto:
    if flat:
        return helper.make_tensor("", TensorProto.INT64, [3], [row * 5 + column for row, column in PLACES])
    return helper.make_tensor("", TensorProto.INT64, [3, 2], np.array(PLACES).reshape(-1))


def with_sparse(
    where: TensorProto, *, norm: bool, sizes: Sequence[int] = (4, 5), constant: bool = False
) -> onnx.ModelProto:
    """A product with a sparse matrix, an initializer or what a Constant holds, and a batch norm behind it or not."""
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, -2.0, 3.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size]) for name, size in (("x", 4), ("y", 5))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m" if norm else "y"], name="product")]
    statistics = {"gamma": 2.0, "beta": 0.5, "mean": 0.1, "variance": 1.5}
    stored = [numpy_helper.from_array(np.full(5, number, np.float32), name) for name, number in statistics.items()]
    if norm:
        nodes.append(helper.make_node("BatchNormalization", ["m", *statistics], ["y"], name="norm"))
    sparse = helper.make_sparse_tensor(values, where, sizes)
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], name="weight", sparse_value=sparse))
    apart = [] if constant else [sparse]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored, sparse_initializer=apart)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("flat", [True, False])
def test_a_sparse_initializer_is_written_as_it_came(flat: bool, tmp_path: Path) -> None:
    proto = with_sparse(indices(flat), norm=False)
    model = frontend.from_proto(proto)
    assert frontend.to_proto(model).graph.sparse_initializer == proto.graph.sparse_initializer
    (path,) = frontend.save(model, tmp_path / "a.onnx")
    assert onnx.load(path).graph.sparse_initializer == proto.graph.sparse_initializer
    assert frontend.is_written(model, path)


@pytest.mark.parametrize("limit", [1 << 30, 64], ids=["in one file", "with its data beside it"])
@pytest.mark.parametrize("constant", [False, True], ids=["an initializer", "a constant"])
def test_a_sparse_tensor_stays_sparse(
    constant: bool, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.frontends.onnx.writing.PROTOBUF_LIMIT", limit)
    proto = with_sparse(indices(flat=True), norm=False, constant=constant)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((16, 16), np.float32), "large"))
    model = frontend.from_proto(proto)
    files = frontend.save(model, tmp_path / "a.onnx")
    written = onnx.load(files[0]).graph
    assert len(files) == (2 if limit == 64 else 1)
    assert list(written.node) == list(proto.graph.node)
    assert written.sparse_initializer == proto.graph.sparse_initializer
    assert frontend.is_written(model, files[0])


def test_sparse_constants_where_nobody_looks_for_them() -> None:
    inner = with_sparse(indices(flat=True), norm=False, constant=True)
    outer = with_sparse(indices(flat=True), norm=False)
    del inner.graph.input[:]
    outer.graph.node.add(op_type="If", input=["x"], output=["z"], name="if").attribute.append(
        helper.make_attribute("then_branch", inner.graph)
    )
    with pytest.raises(Rejected, match="sparse tensors in a subgraph") as caught:
        frontend.from_proto(outer)
    assert caught.value.code == "unsupported-model"


@pytest.mark.parametrize("constant", [False, True], ids=["an initializer", "a constant"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_fold_into_a_sparse_matrix_makes_it_dense(flat: bool, constant: bool) -> None:
    model = frontend.from_proto(with_sparse(indices(flat), norm=True, constant=constant))
    folded, report = frontend.fold_model(model)
    assert report.folded == 1
    assert not frontend.to_proto(folded).graph.sparse_initializer
    assert [node.op_type for node in frontend.to_proto(folded).graph.node] == ["MatMul", "Add"]
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
@pytest.mark.parametrize("constant", [False, True], ids=["an initializer", "a constant"])
def test_a_sparse_tensor_that_contradicts_itself(
    where: TensorProto, sizes: tuple[int, ...], code: str, constant: bool
) -> None:
    with pytest.raises(Rejected) as caught:
        frontend.from_proto(with_sparse(where, norm=False, sizes=sizes, constant=constant))
    assert caught.value.code == code


@pytest.mark.parametrize("constant", [False, True], ids=["an initializer", "a constant"])
def test_a_sparse_tensor_in_another_file(constant: bool) -> None:
    where = indices(flat=True)
    where.data_location = TensorProto.EXTERNAL
    where.external_data.add(key="location", value="indices.bin")
    with pytest.raises(Rejected, match="in another file") as caught:
        frontend.from_proto(with_sparse(where, norm=False, constant=constant))
    assert caught.value.code == "unsupported-model"


# Graphs for training.


def step(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """One step of training."""
    rate = helper.make_tensor_value_info("rate", TensorProto.FLOAT, [])
    new = helper.make_tensor_value_info("new", TensorProto.FLOAT, None)
    return helper.make_graph(nodes or [helper.make_node("Identity", ["rate"], ["new"])], "step", [rate], [new])


def bound(name: str) -> onnx.TrainingInfoProto:
    return helper.make_training_info(step(), [(name, "new")], None, None)


def initialised(name: str) -> onnx.TrainingInfoProto:
    return helper.make_training_info(step(), [], step(), [(name, "new")])


def read(name: str) -> onnx.TrainingInfoProto:
    return helper.make_training_info(step(helper.make_node("Mul", [name, "rate"], ["new"])), [], None, None)


def differentiated(name: str) -> onnx.TrainingInfoProto:
    domain = "ai.onnx.preview.training"
    return helper.make_training_info(
        step(helper.make_node("Gradient", ["rate"], ["new"], domain=domain, xs=[name], y="rate")), [], None, None
    )


def stored(proto: onnx.ModelProto, name: str) -> TensorProto:
    return next(each for each in proto.graph.initializer if each.name == name)


def trained(*infos: onnx.TrainingInfoProto) -> onnx.ModelProto:
    """Two convolutions with a batch norm behind the second, in a file with graphs for training."""
    net = Net()
    data = net.node("Relu", [net.conv("x", 2, 2, name="stem")])
    net.batch_norm(net.conv(data, 2, 3, bias=True, name="conv"), 3)
    proto = net.model({"x": (2, 2, 7, 7)})
    proto.training_info.extend(infos)
    return proto


@pytest.mark.parametrize("limit", [1 << 30, 64], ids=["in one file", "with its data beside it"])
def test_graphs_for_training_are_written_as_they_came(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.frontends.onnx.writing.PROTOBUF_LIMIT", limit)
    proto = trained(bound("stem.weight"), read("nothing"))
    result = bnfold.fold(proto)
    assert result.report.folded == 1
    written = onnx.load(frontend.save(frontend.from_proto(result.model), tmp_path / "a.onnx")[0])
    assert written.training_info == proto.training_info
    assert stored(written, "stem.weight") == stored(proto, "stem.weight")
    assert bnfold.check(proto, written).verdict == "proved"


@pytest.mark.parametrize("named", [bound, initialised, read, differentiated])
@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "bn.weight", "bn.mean"])
def test_nothing_that_training_changes_is_folded(name: str, named: Callable[[str], onnx.TrainingInfoProto]) -> None:
    proto = trained(named(name))
    result = bnfold.fold(proto)
    assert [outcome.refusal and outcome.refusal.reason for outcome in result.report.norms] == [Reason.TRAINED]
    assert result.model == proto


def test_what_training_changes_is_not_removed() -> None:
    proto = trained(bound("sizes"))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "sizes"))
    proto.graph.node.insert(0, helper.make_node("Shape", ["sizes"], ["three"]))
    proto.graph.node.insert(1, helper.make_node("ConstantOfShape", ["three"], ["zeros"]))
    proto.graph.node[4].input[2] = "zeros"
    found = bnfold.fold(proto)
    assert found.report.folded == 1
    assert "Shape" not in [node.op_type for node in found.model.graph.node]
    assert "sizes" in [stored.name for stored in found.model.graph.initializer]


def another_copy(proto: onnx.ModelProto) -> None:
    """Let the convolution read a copy, which training does not change."""
    copy = proto.graph.initializer.add()
    copy.CopyFrom(stored(proto, "stem.weight"))
    copy.name = "copy"
    next(node for node in proto.graph.node if node.name == "stem_node").input[1] = "copy"


def another_start(proto: onnx.ModelProto) -> None:
    """Let training begin with other numbers."""
    weight = stored(proto, "stem.weight")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda proto: proto.ClearField("training_info"), "training graphs"),
        (lambda proto: proto.training_info[0].algorithm.node[0].output.__setitem__(0, "other"), "training graphs"),
        (another_copy, "stem_node reads"),
        (another_start, "the stored value of stem.weight changed"),
    ],
    ids=["no training", "another step", "another copy", "another start"],
)
def test_a_model_that_trains_otherwise_is_not_licensed(spoil: Callable[[onnx.ModelProto], None], says: str) -> None:
    original = frontend.from_proto(trained(bound("stem.weight")))
    folded, report = frontend.fold_model(original)
    proto = onnx.ModelProto.FromString(frontend.to_bytes(folded))
    spoil(proto)
    before, after = (Side(dialect_of(model), model) for model in (original, frontend.from_proto(proto)))
    layer = derived_again(before, after, report, seed=0)[0].layers[0]
    assert layer.status is Status.FAIL
    assert says in layer.because


def test_graphs_for_training_with_data_in_another_file() -> None:
    info = bound("conv.weight")
    info.algorithm.initializer.add(
        name="momentum", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL
    )
    with pytest.raises(Rejected, match="training with data in other files") as caught:
        frontend.from_proto(trained(info))
    assert caught.value.code == "unsupported-model"


def test_a_stored_tensor_that_is_an_output_keeps_its_type() -> None:
    stored = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    result = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([], "g", [], [result], [stored])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert frontend.to_proto(frontend.from_proto(proto)).graph.output == proto.graph.output

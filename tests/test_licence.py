"""L0: a right fold changes only what its records say; whatever else changes is seen, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from licences import assert_licensed, complaints
from onnx import helper, numpy_helper
from onnx_build import Net

from bnfold.evidence import Held
from bnfold.folding import FoldOptions
from bnfold.frontends import onnx as frontend
from bnfold.outcome import FoldReport
from bnfold.verify.check import Records
from bnfold.verify.licence import licence, unchanged
from bnfold.verify.result import Status
from bnfold.verify.structure import Structure, same_numbers

Change = Callable[[onnx.ModelProto], None]


def network() -> onnx.ModelProto:
    """A convolution and its batch norm, one that stays, a residual sum that becomes one operator, and a MatMul."""
    net = Net()
    x = net.node("Relu", [net.batch_norm(net.conv("x", 4, 4, (3, 3), pads=[1, 1, 1, 1], name="first"), 4, "bn1")])
    x = net.node("Clip", [net.conv(x, 4, 4, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2], name="second")], "clip")
    x = net.node("Sigmoid", [net.batch_norm(x, 4, "bn2")], "sigmoid")
    both = net.node("Add", [net.conv(x, 4, 4, (3, 3), pads=[1, 1, 1, 1], name="wide"), x], "residual")
    x = net.node("Mul", [net.node("Tanh", [both], "tanh"), net.node("Exp", [both], "exp")], "gated")
    x = net.node("Clip", [x, net.constant("low", np.float32(0)), net.constant("high", np.float32(6))], "clipped")
    x = net.node("ReduceMean", [x], "pooled", axes=[2, 3], keepdims=0)
    x = net.batch_norm(net.node("MatMul", [x, net.constant("matrix", net.numbers(4, 5))], "product"), 5, "bn3")
    net.node("Softmax", [net.node("Identity", [x], "same")], "y")
    model = net.model({"x": ("batch", 4, 8, 8)})
    helper.set_model_props(model, {"owner": "someone"})
    return model


def folded_after(change: Change | None = None) -> tuple[Structure, FoldReport]:
    """The structure of a fold that somebody changed afterwards."""
    original = frontend.from_proto(network())
    folded, report = frontend.fold_model(original)
    proto = onnx.ModelProto.FromString(frontend.to_bytes(folded))
    if change is not None:
        change(proto)
    after = frontend.from_proto(proto)
    records = recorded(original, after, report)
    return records.structure(), report


def recorded(original: object, after: object, report: FoldReport) -> Records:
    models = original, after
    stored, held = map(frontend.evidence, models), map(frontend.contents, models)  # type: ignore[arg-type]
    return Records(*stored, report, *held)


def said(structure: Structure) -> str:
    return "; ".join(each.because for each in structure.complaints() if each.status is Status.FAIL)


def node(proto: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(each for each in proto.graph.node if each.name == f"{output}_node")


def attribute(output: str, name: str, value: object) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        here = node(proto, output)
        kept = [each for each in here.attribute if each.name != name]
        del here.attribute[:]
        here.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def constant(name: str) -> Change:
    """The last bit of a number."""

    def change(proto: onnx.ModelProto) -> None:
        stored = next(each for each in proto.graph.initializer if each.name == name)
        numbers = numpy_helper.to_array(stored).copy()
        numbers.reshape(-1)[0] = np.nextafter(numbers.reshape(-1)[0], np.float32(9))
        stored.CopyFrom(numpy_helper.from_array(numbers, name))

    return change


def rewired(output: str, port: int, to: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        node(proto, output).input[port] = to

    return change


def removed(output: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        gone = node(proto, output)
        proto.graph.node.remove(gone)
        for each in proto.graph.node:
            for port, name in enumerate(each.input):
                if name == output:
                    each.input[port] = gone.input[0]

    return change


def inserted(proto: onnx.ModelProto) -> None:
    """Something that does nothing here, and that nobody asked for."""
    tail = node(proto, "tanh")
    place = list(proto.graph.node).index(tail)
    proto.graph.node.insert(place, helper.make_node("Relu", [tail.input[0]], ["more"], name="more_node"))
    tail.input[0] = "more"


def renamed(proto: onnx.ModelProto) -> None:
    node(proto, "sigmoid").op_type = "Tanh"


CHANGES: dict[str, tuple[Change, str]] = {
    "dilation of an operator that stays": (attribute("second", "dilations", [1, 1]), "the attribute dilations of sec"),
    "padding of an operator that was folded into": (attribute("first", "pads", [2, 2, 0, 0]), "the attribute pads of"),
    "axis of a reduction": (attribute("pooled", "axes", [3, 2]), "the attribute axes of pooled_node is [3, 2]"),
    "another epsilon": (attribute("bn2", "epsilon", 1e-4), "the attribute epsilon of bn2_node"),
    "a bound of a clip": (constant("high"), "a constant that clipped_node reads changed: high"),
    "a weight that took nothing in": (constant("second.weight"), "a constant that second_node reads changed"),
    "a statistic of a batch norm that stays": (constant("bn2.mean"), "a constant that bn2_node reads changed"),
    "an operator left out": (removed("clip"), "bn2_node reads second_node instead of clip_node"),
    "an operand of another value": (rewired("gated", 1, "tanh"), "gated_node reads tanh_node instead of exp_node"),
    "an operator more": (inserted, "more_node is new"),
    "another operator": (renamed, "sigmoid_node is Tanh instead of Sigmoid"),
}


def test_a_right_fold_has_its_licence() -> None:
    structure, report = folded_after()
    assert list(structure.complaints()) == []
    assert report.folded == 2
    assert len(report.merges) == 1
    assert "product_node_bias" in structure.after.operations


@pytest.mark.parametrize("title", CHANGES)
def test_a_change_that_no_record_names_is_seen(title: str) -> None:
    change, because = CHANGES[title]
    assert because in said(folded_after(change)[0])


def test_swapped_outputs_are_seen() -> None:
    net = Net()
    shared = net.batch_norm(net.conv("x", 3, 4), 4)
    net.node("Relu", [shared], "a")
    net.node("Sigmoid", [shared], "b")
    original = frontend.from_proto(net.model({"x": (1, 3, 5, 5)}, ["a", "b"]))
    folded, report = frontend.fold_model(original)
    proto = frontend.to_proto(folded)
    for each in proto.graph.node:
        each.op_type = {"Relu": "Sigmoid", "Sigmoid": "Relu"}.get(each.op_type, each.op_type)
        each.name = {"a_node": "b_node", "b_node": "a_node"}.get(each.name, each.name)
    found = complaints(frontend, original, frontend.from_proto(proto), report)
    assert any("output 0 is b_node instead of a_node" in each.because for each in found)


RECORDS: dict[str, tuple[Callable[[FoldReport], FoldReport], str]] = {
    "none": (lambda report: FoldReport(()), "bn1_node is gone, and there is no record of it"),
    "one missing": (lambda report: replace(report, outcomes=report.outcomes[1:]), "bn1_node is gone"),
    "one twice": (lambda report: replace(report, outcomes=(*report.outcomes, report.outcomes[0])), "more than one"),
    "without a rule": (
        lambda report: replace(report, outcomes=(replace(report.outcomes[0], rule=None), *report.outcomes[1:])),
        "names no rule",
    ),
    "without an axis": (
        lambda report: replace(report, outcomes=(replace(report.outcomes[0], axis=None), *report.outcomes[1:])),
        "which axis its channels are on",
    ),
    "the merge missing": (
        lambda report: replace(report, absorbed=tuple(each for each in report.absorbed if hasattr(each, "side"))),
        "instead of residual_node",
    ),
}


@pytest.mark.parametrize("title", RECORDS)
def test_records_that_are_missing_or_say_too_little_are_seen(title: str) -> None:
    change, because = RECORDS[title]
    structure, report = folded_after()
    stripped = Structure(structure.before, structure.after, structure.original, structure.folded, change(report))
    assert because in said(stripped)


def test_a_merge_of_operators_on_different_values_is_seen() -> None:
    structure, report = folded_after()
    wide = structure.before.operations["wide_node"]
    elsewhere = replace(wide, reads={**wide.reads, "0": structure.before.operations["clip_node"].reads["0"]})
    before = replace(structure.before, operations={**structure.before.operations, "wide_node": elsewhere})
    found = said(Structure(before, structure.after, structure.original, structure.folded, report))
    assert "wide_node reads" in found


def test_what_the_records_lower_reads_what_the_batch_norm_read() -> None:
    original = frontend.from_proto(network())
    folded, report = frontend.fold_model(original, FoldOptions(leftover="affine"))
    assert_licensed(frontend, original, folded, report)
    proto = onnx.ModelProto.FromString(frontend.to_bytes(folded))
    first = next(each for each in proto.graph.node if each.name == "bn2_node_scale")
    first.input[list(first.input).index("clip")] = "second"
    found = complaints(frontend, original, frontend.from_proto(proto), report)
    assert any("does not read what bn2_node read" in each.because for each in found)


def layer_of(change: Change, **more: object):  # type: ignore[no-untyped-def]
    original = frontend.from_proto(network())
    folded, report = frontend.fold_model(original)
    proto = onnx.ModelProto.FromString(frontend.to_bytes(folded))
    change(proto)
    after = frontend.from_proto(proto)
    facts = frontend.identity(original), frontend.identity(after)
    interface = licence(frontend.signature(original), frontend.signature(after), facts, exactly=True)
    said_by_checker = frontend.complaint(original), frontend.complaint(after)
    return unchanged(interface, recorded(original, after, report).structure(), said_by_checker)


def test_metadata_and_versions_are_part_of_the_licence() -> None:
    assert layer_of(lambda proto: None).status is Status.PASS
    dropped = layer_of(lambda proto: proto.ClearField("metadata_props"))
    assert dropped.status is Status.FAIL
    assert "metadata owner=someone" in dropped.because
    assert "IR version" in layer_of(lambda proto: setattr(proto, "ir_version", 9)).because


def test_a_type_that_contradicts_the_graph_is_a_complaint_of_the_checker() -> None:
    def lie(proto: onnx.ModelProto) -> None:
        proto.graph.value_info.append(helper.make_tensor_value_info("tanh", onnx.TensorProto.INT64, [1, 4, 8, 8]))

    found = layer_of(lie)
    assert found.status is Status.FAIL
    assert "is not valid" in found.because


def test_numbers_are_compared_by_their_bytes() -> None:
    zeros = np.zeros(4, np.float32)
    assert same_numbers(zeros, zeros.copy())
    assert same_numbers(np.full(2, np.nan), np.full(2, np.nan))
    assert not same_numbers(zeros, -zeros)
    assert not same_numbers(zeros, zeros.astype(np.float64))
    assert not same_numbers(zeros, zeros.reshape(2, 2))


def test_what_does_nothing_is_seen_through() -> None:
    net = Net()
    kept = net.node("Dropout", [net.node("Identity", ["x"], "same"), net.constant("ratio", np.float32(0.5))], "dropped")
    net.node("Relu", [kept], "y")
    held = frontend.contents(frontend.from_proto(net.model({"x": (1, 3)})))
    assert held.operations.keys() == {"y_node"}
    training = Net()
    flag = numpy_helper.from_array(np.array(True), "train")
    training.constants.append(flag)
    training.node("Dropout", ["x", training.constant("ratio", np.float32(0.5)), "train"], "dropped")
    operations = frontend.contents(frontend.from_proto(training.model({"x": (1, 3)}))).operations
    assert operations.keys() == {"dropped_node"}
    assert isinstance(operations["dropped_node"].reads["2"], Held)


def test_a_parameter_that_is_not_known_is_a_warning_not_a_difference() -> None:
    """A bias that depends on the size of the data: no certificate, but no alarm either."""
    net = Net()
    size = net.node("Gather", [net.node("Shape", ["x"], "shape"), net.integers("second", 1)], "size")
    bias = net.node("Expand", [net.constant("zero", np.zeros(1)), size], "spread")
    net.batch_norm(net.node("Conv", ["x", net.constant("w", net.numbers(3, 3, 1, 1)), bias], "conv"), 3)
    original = frontend.from_proto(net.model({"x": (1, 3, 5, 5)}))
    folded, report = frontend.fold_model(original)
    assert report.folded == 1
    found = complaints(frontend, original, folded, report)
    assert found
    assert {each.status for each in found} == {Status.WARN}
    assert "parameters of conv_node are not known" in found[0].because

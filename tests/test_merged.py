"""The certificate of merged operators: every damaged number, attribute and record is seen.

Three models cover what an expression may hold: branches with batch norms on both sides and on the value itself, groups
that widen and kernels that grow, and operators in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_build import Net

from bnfold.evidence import Evidence, StoredLinear
from bnfold.frontends import onnx as frontend
from bnfold.outcome import Combined, FoldReport, Term
from bnfold.verify.certificate import derive
from bnfold.verify.result import Layer, Status


def repvgg() -> Net:
    """Two convolutions with batch norms, and a batch norm of the value itself."""
    net = Net()
    x = net.node("Relu", ["x"])
    dense = net.batch_norm(net.conv(x, 4, 4, pads=[1, 1, 1, 1]), 4, "bn3")
    point = net.batch_norm(net.conv(x, 4, 4, (1, 1), bias=True), 4, "bn1")
    both = net.node("Add", [dense, point])
    net.node("Relu", [net.node("Add", [both, net.batch_norm(x, 4, "bn0")])])
    return net


def grouped() -> Net:
    """Kernels of other sizes, dilations and groups, a difference, and a batch norm behind the sum."""
    net = Net()
    x = net.node("Relu", ["x"])
    dense = net.conv(x, 4, 4, pads=[1, 1, 1, 1], name="dense")
    paired = net.conv(x, 4, 4, (3, 1), group=2, pads=[1, 0, 1, 0], name="paired")
    less = net.node("Sub", [dense, paired])
    depth = net.conv(x, 4, 4, (1, 3), group=4, pads=[0, 1, 0, 1], bias=True, name="depth")
    net.node("Relu", [net.batch_norm(net.node("Sub", [less, depth]), 4)])
    return net


def serial() -> Net:
    """One tap, then three by three without padding, then one tap with a stride; batch norms between."""
    net = Net()
    first = net.batch_norm(net.conv("x", 4, 3, (1, 1), bias=True, name="first"), 3, "bn1")
    second = net.batch_norm(net.conv(first, 3, 2, (2, 3), bias=True, name="second"), 2, "bn2")
    net.node("Relu", [net.conv(second, 2, 4, (1, 1), bias=True, name="third", strides=[2, 1])])
    return net


@dataclass(frozen=True)
class Case:
    original: Evidence
    folded: Evidence
    report: FoldReport

    @classmethod
    def of(cls, build: Callable[[], Net]) -> Case:
        model = frontend.from_proto(build().model({"x": (2, 4, 7, 7)}))
        folded, report = frontend.fold_model(model)
        assert report.merges
        return cls(frontend.evidence(model), frontend.evidence(folded), report)

    @property
    def host(self) -> str:
        return self.report.merges[-1].into.name

    def layer(self) -> Layer:
        return derive(self.original, self.folded, self.report)

    def with_host(self, change: Callable[[StoredLinear], StoredLinear]) -> Case:
        linears = self.folded.linears | {self.host: change(self.folded.linears[self.host])}
        return replace(self, folded=replace(self.folded, linears=linears))

    def with_terms(self, change: Callable[[tuple[Term, ...]], tuple[Term, ...]]) -> Case:
        events = [replace(e, terms=change(e.terms)) if isinstance(e, Combined) else e for e in self.report.absorbed]
        return replace(self, report=replace(self.report, absorbed=tuple(events)))


NETS = pytest.mark.parametrize("build", [repvgg, grouped, serial])


@NETS
def test_what_is_right_passes(build: Callable[[], Net]) -> None:
    layer = Case.of(build).layer()
    assert layer.status is Status.PASS, layer.because
    assert layer.figure is not None
    assert 0 < layer.figure <= 0.5 + 2.0**-20


@NETS
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_every_number_counts(build: Callable[[], Net], tensor: str) -> None:
    case = Case.of(build)
    stored = getattr(case.folded.linears[case.host], tensor)
    for index in np.ndindex(stored.shape):
        damaged = stored.copy()
        damaged[index] = np.nextafter(damaged[index], np.float32(np.inf)) if damaged[index] else np.float32(1e-6)
        damaged[index] = np.nextafter(damaged[index], np.float32(np.inf))
        wrong = case.with_host(lambda op, damaged=damaged: replace(op, **{tensor: damaged}))  # type: ignore[misc]
        layer = wrong.layer()
        assert layer.status is Status.FAIL, index
        assert case.host in layer.because


@NETS
@pytest.mark.parametrize("attribute", ["stride", "dilation", "before", "after"])
def test_the_attributes_count(build: Callable[[], Net], attribute: str) -> None:
    case = Case.of(build)

    def moved(op: StoredLinear) -> StoredLinear:
        assert op.window is not None
        sizes = getattr(op.window, attribute)
        return replace(op, window=replace(op.window, **{attribute: (sizes[0] + 1, *sizes[1:])}))

    assert case.with_host(moved).layer().status is Status.FAIL


def sign_turned(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return (*terms[:-1], replace(terms[-1], sign=-terms[-1].sign))


def first_twice(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return (terms[0], *terms)


def last_forgotten(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return terms[:-1]


def affine_forgotten(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(replace(term, affine=None) for term in terms)


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (repvgg, sign_turned),
        (repvgg, first_twice),
        (repvgg, last_forgotten),
        (repvgg, affine_forgotten),
        (grouped, sign_turned),
        (grouped, first_twice),
        (grouped, last_forgotten),
    ],
)
def test_the_records_are_not_believed(
    build: Callable[[], Net], change: Callable[[tuple[Term, ...]], tuple[Term, ...]]
) -> None:
    layer = Case.of(build).with_terms(change).layer()
    assert layer.status is Status.FAIL, layer.because


def test_operators_in_another_order_are_seen() -> None:
    case = Case.of(serial)
    assert case.with_terms(lambda terms: terms[::-1]).layer().status in (Status.FAIL, Status.SKIPPED)


def test_an_operator_that_was_merged_and_is_still_there_is_seen() -> None:
    case = Case.of(repvgg)
    gone = next(site.name for site in case.report.merges[0].nodes if site.name in case.original.linears)
    still = replace(case.folded, linears=case.folded.linears | {gone: case.original.linears[gone]})
    layer = replace(case, folded=still).layer()
    assert layer.status is Status.FAIL
    assert gone in layer.because


def test_a_window_that_nothing_tells_is_no_verdict() -> None:
    case = Case.of(grouped)
    blind = {name: replace(op, window=None) for name, op in case.original.linears.items()}
    assert replace(case, original=replace(case.original, linears=blind)).layer().status is Status.SKIPPED


def test_a_transposed_convolution_is_derived_too() -> None:
    net = Net()
    x = net.node("Relu", ["x"])
    terms = [net.conv_transpose(x, 4, 4, strides=[2, 2], bias=True, name=name) for name in ("one", "two")]
    net.node("Relu", [net.node("Add", terms)])
    case = Case.of(lambda: net)
    assert case.layer().status is Status.PASS
    scaled = case.with_host(lambda op: replace(op, weight=op.weight * np.float32(1 + 1e-5)))
    assert scaled.layer().status is Status.FAIL


def test_a_merge_is_named_in_the_verdict() -> None:
    assert "4 operators merged into" not in Case.of(repvgg).layer().because
    assert "2 operators merged into 1 derived again" in Case.of(repvgg).layer().because


def test_nothing_of_the_model_that_went_in_changes() -> None:
    model = frontend.from_proto(repvgg().model({"x": (2, 4, 7, 7)}))
    before = ir.serde.serialize_model(model).SerializeToString()
    frontend.fold_model(model)
    assert ir.serde.serialize_model(model).SerializeToString() == before

"""The certificate accepts what exact arithmetic gives in every layout and type, and rejects everything near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredLinear, StoredNorm
from bnfold.folding import FoldReport, Outcome
from bnfold.graph import Reason, Refusal, Site
from bnfold.verify.certificate import derive
from bnfold.verify.derivation import ulp
from bnfold.verify.result import Layer, Status

Array = NDArray[Any]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
# layout, weight shape, groups, input channels, output channels
LAYOUTS = [
    ("conv", (8, 3, 3, 3), 2, 6, 8),
    ("conv", (8, 1, 5), 8, 8, 8),
    ("conv_transpose", (8, 3, 3, 3), 4, 8, 12),
    ("conv_transpose", (6, 4, 1, 3, 2), 1, 6, 4),
    ("matmul", (6, 9), 1, 6, 9),
    ("linear", (9, 6), 1, 6, 9),
]


def norm(channels: int, random: np.random.Generator, dtype: Any = np.float32) -> StoredNorm:
    def draw(low: float, high: float) -> Array:
        return random.uniform(low, high, channels).astype(dtype)

    return StoredNorm(draw(-1.5, 1.5), draw(-1, 1), draw(-1, 1), draw(0.1, 3), float(np.float32(1e-5)))


@dataclass(frozen=True)
class Case:
    """An operator, the batch norms around it, and the operator into which they were folded in float64."""

    original: Evidence
    folded: Evidence
    report: FoldReport

    def derive(self) -> Layer:
        return derive(self.original, self.folded, self.report)

    def with_operator(self, **changes: Any) -> Case:
        return replace(self, folded=Evidence({}, {"op": replace(self.folded.linears["op"], **changes)}))


def folded_by_hand(op: StoredLinear, before: list[StoredNorm], after: list[StoredNorm]) -> StoredLinear:
    """Element by element, by loops over channels: nothing is shared with the algebra or with the certificate."""
    weight = op.weight.astype(np.float64) * op.alpha
    outs = {"conv": weight.shape[0], "conv_transpose": weight.shape[1] * op.groups, "matmul": weight.shape[-1]}
    count = outs.get(op.layout, weight.shape[0])
    bias = np.zeros(count) if op.bias is None else op.bias.astype(np.float64).reshape(-1) * op.beta
    bias = np.array(np.broadcast_to(bias, (count,)))
    for bn in reversed(before):
        scale, shift = affine(bn)
        for o, i, index in links(op):
            bias[o] += weight[index].sum() * shift[i]
            weight[index] *= scale[i]
    for bn in after:
        scale, shift = affine(bn)
        for o, _, index in links(op):
            weight[index] *= scale[o]
        bias = bias * scale + shift
    return StoredLinear(op.layout, weight.astype(op.weight.dtype), bias.astype(op.weight.dtype), op.groups)


def affine(bn: StoredNorm) -> tuple[Array, Array]:
    gamma, beta, mean, variance = (v.astype(np.float64) for v in (bn.gamma, bn.beta, bn.mean, bn.variance))
    scale = gamma / np.sqrt(variance + bn.epsilon)
    return scale, beta - mean * scale


def links(op: StoredLinear) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Every (output, input) channel pair that is connected, and where its taps are."""
    first, second = op.weight.shape[:2]
    if op.layout == "linear":
        return [(o, i, (slice(o, o + 1), i)) for o in range(first) for i in range(second)]
    if op.layout == "matmul":
        return [(o, i, (slice(i, i + 1), o)) for i in range(first) for o in range(second)]
    if op.layout == "conv":
        per = first // op.groups
        return [(o, o // per * second + i, (o, i)) for o in range(first) for i in range(second)]
    per = first // op.groups
    return [(i // per * second + o, i, (i, o)) for i in range(first) for o in range(second)]


def outcome(name: str, rule: str, *into: str) -> Outcome:
    sites = tuple(Site(node, "Conv") for node in into)
    return Outcome(Site(name, "BatchNormalization"), None, None, rule, sites, None)


def case(
    layout: Any = "conv",
    shape: tuple[int, ...] = (8, 3, 3, 3),
    groups: int = 2,
    ins: int = 6,
    outs: int = 8,
    *,
    dtype: Any = np.float32,
    before: int = 0,
    after: int = 1,
    bias: bool = True,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Case:
    random = np.random.default_rng(7)
    offset = random.standard_normal(outs).astype(dtype) if bias else None
    op = StoredLinear(layout, random.standard_normal(shape).astype(dtype), offset, groups, alpha, beta)
    norms = {f"before{i}": norm(ins, random) for i in range(before)} | {
        f"after{i}": norm(outs, random) for i in range(after)
    }
    folded = folded_by_hand(
        op, [norms[f"before{i}"] for i in range(before)], [norms[f"after{i}"] for i in range(after)]
    )
    report = FoldReport(
        tuple(outcome(name, "into-consumer" if name.startswith("before") else "into-producer", "op") for name in norms)
    )
    return Case(Evidence(norms, {"op": op}), Evidence({}, {"op": folded}), report)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(("layout", "shape", "groups", "ins", "outs"), LAYOUTS)
@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (2, 3)])
def test_a_correct_fold_passes(
    layout: str, shape: tuple[int, ...], groups: int, ins: int, outs: int, before: int, after: int, dtype: Any
) -> None:
    layer = case(layout, shape, groups, ins, outs, dtype=dtype, before=before, after=after).derive()
    assert layer.status is Status.PASS, layer
    assert layer.figure is not None
    assert layer.figure <= 0.5 + 2**-20


@pytest.mark.parametrize(("alpha", "beta", "bias"), [(0.5, 2.0, True), (-1.25, 0.3, True), (3.0, 1.0, False)])
def test_the_factors_of_gemm_are_part_of_the_operator(alpha: float, beta: float, bias: bool) -> None:
    gemm = case("linear", (9, 6), 1, 6, 9, before=1, alpha=alpha, beta=beta, bias=bias)
    assert gemm.derive().status is Status.PASS
    kept = gemm.folded.linears["op"]
    doubled = gemm.with_operator(weight=kept.weight * np.float32(2), alpha=0.5)
    assert doubled.derive().status is Status.PASS
    assert gemm.with_operator(alpha=0.5).derive().status is Status.FAIL


def test_a_missing_bias_is_a_bias_of_zeros() -> None:
    centred = case(bias=False)
    flat = replace(centred.original.norms["after0"], beta=np.zeros(8, np.float32), mean=np.zeros(8, np.float32))
    centred = replace(centred, original=Evidence({"after0": flat}, centred.original.linears))
    assert centred.with_operator(bias=None).derive().status is Status.PASS
    assert case(bias=False).with_operator(bias=None).derive().status is Status.FAIL


def _wrong_epsilon(case: Case) -> Case:
    return _refolded(case, epsilon=1e-3)


def _refolded(case: Case, **changes: Any) -> Case:
    wrong = replace(case.original.norms["after0"], **changes)
    return replace(case, folded=Evidence({}, {"op": folded_by_hand(case.original.linears["op"], [], [wrong])}))


def _outside_the_root(case: Case) -> Case:
    bn = case.original.norms["after0"]
    epsilon = bn.epsilon
    variance = (np.sqrt(bn.variance.astype(np.float64)) + epsilon) ** 2 - epsilon
    return _refolded(case, variance=variance)


def _variance_scaled(case: Case) -> Case:
    return _refolded(case, variance=case.original.norms["after0"].variance.astype(np.float64) * (1 + 1e-5))


def _on(name: str, change: Callable[[Array], Array]) -> Callable[[Case], Case]:
    def mutate(case: Case) -> Case:
        return case.with_operator(**{name: change(getattr(case.folded.linears["op"], name).copy())})

    return mutate


def _set(channel: int, change: Callable[[Array], Any]) -> Callable[[Array], Array]:
    def apply(values: Array) -> Array:
        values[channel] = change(values[channel])
        return values

    return apply


def _bumped(values: Array) -> Array:
    values.reshape(-1)[5] = np.nextafter(values.reshape(-1)[5], np.float32(np.inf))
    return values


MUTANTS: dict[str, Callable[[Case], Case]] = {
    "wrong epsilon": _wrong_epsilon,
    "sqrt(var) + eps": _outside_the_root,
    "variance scaled by 1 + 1e-5": _variance_scaled,
    "beta ignored": lambda case: _refolded(case, beta=np.zeros(8)),
    "mean ignored": lambda case: _refolded(case, mean=np.zeros(8)),
    "gamma ignored": lambda case: _refolded(case, gamma=np.ones(8)),
    "mean and variance exchanged": lambda case: _refolded(
        case, mean=case.original.norms["after0"].variance, variance=abs(case.original.norms["after0"].mean)
    ),
    "channels swapped": _on("weight", lambda weight: weight[[1, 0, *range(2, 8)]]),
    "biases swapped": _on("bias", lambda bias: bias[[0, 2, 1, *range(3, 8)]]),
    "one channel times 1 + 1e-5": _on("weight", _set(3, lambda w: w * np.float32(1 + 1e-5))),
    "one bias off by 1 %": _on("bias", _set(6, lambda b: b * np.float32(1.01))),
    "one weight NaN": _on("weight", _set(2, lambda w: np.full_like(w, np.nan))),
    "one bias infinite": _on("bias", _set(2, lambda b: np.float32(np.inf))),
    "kernel flipped": _on("weight", lambda weight: weight[..., ::-1]),
    "rounded to float16 on the way": _on("weight", lambda weight: weight.astype(np.float16).astype(np.float32)),
    "rounded to bfloat16 on the way": _on("weight", lambda w: w.astype(ml_dtypes.bfloat16).astype(np.float32)),
    "one weight one ulp off": _on("weight", _bumped),
    "stored as float16, scaled": _on("weight", lambda weight: (weight * np.float32(1.01)).astype(np.float16)),
    "bias dropped": lambda case: case.with_operator(bias=None),
    "not folded at all": lambda case: replace(case, folded=Evidence({}, case.original.linears)),
}


@pytest.mark.parametrize("mutate", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_wrong_fold_is_rejected_by_name_and_channel(mutate: Callable[[Case], Case]) -> None:
    layer = mutate(case()).derive()
    assert layer.status is Status.FAIL, layer
    assert layer.affine == "after0"
    assert layer.channel is not None
    assert "after0" in layer.because


def test_the_channel_is_the_one_that_is_wrong() -> None:
    assert MUTANTS["one channel times 1 + 1e-5"](case()).derive().channel == 3
    assert MUTANTS["one bias off by 1 %"](case()).derive().channel == 6
    transposed = case("conv_transpose", (8, 3, 3, 3), 4, 8, 12)
    weight = transposed.folded.linears["op"].weight.copy()
    weight[2, 1] *= np.float32(1 + 1e-5)
    assert transposed.with_operator(weight=weight).derive().channel == 4


def test_the_wrong_order_of_two_batch_norms_is_rejected() -> None:
    two = case(after=2)
    assert two.derive().status is Status.PASS
    reversed_report = FoldReport(two.report.outcomes[::-1])
    assert replace(two, report=reversed_report).derive().status is Status.FAIL


def test_cancellation_in_float64_is_no_failure_but_float32_arithmetic_is() -> None:
    """b − μ is tiny beside β: what float64 loses is allowed for, what float32 loses is not."""
    one = np.ones(1, np.float32)
    mean = np.array([1e4], np.float32)
    bn = StoredNorm(np.array([3.0], np.float32), np.array([0.0], np.float32), mean, one * 7, 1e-5)
    op = StoredLinear("linear", one.reshape(1, 1), mean + np.float32(2**-9), 1)
    folded = folded_by_hand(op, [], [bn])
    report = FoldReport((outcome("bn", "into-producer", "op"),))
    assert derive(Evidence({"bn": bn}, {"op": op}), Evidence({}, {"op": folded}), report).status is Status.PASS
    scale = bn.gamma / np.sqrt(bn.variance + np.float32(1e-5))
    assert op.bias is not None
    in_float32 = replace(folded, bias=op.bias * scale + (bn.beta - mean * scale))
    layer = derive(Evidence({"bn": bn}, {"op": op}), Evidence({}, {"op": in_float32}), report)
    assert layer.status is Status.FAIL
    assert layer.figure is not None
    assert layer.figure > 100


def test_untouched_operators_must_be_identical() -> None:
    touched = case()
    other = StoredLinear("linear", np.ones((2, 2), np.float32), None)
    kept = norm(4, np.random.default_rng(1))
    left = Outcome(Site("kept", "BatchNormalization"), 4, 1, None, (), Refusal(Reason.READ_BY_NONLINEARITY))
    report = FoldReport((*touched.report.outcomes, left))
    original = Evidence({**touched.original.norms, "kept": kept}, {**touched.original.linears, "other": other})

    def status(other: StoredLinear | None, kept: StoredNorm) -> Status:
        linears = {**touched.folded.linears, **({"other": other} if other else {})}
        return derive(original, Evidence({"kept": kept}, linears), report).status

    assert status(other, kept) is Status.PASS
    assert status(replace(other, bias=np.zeros(2, np.float32)), kept) is Status.PASS
    assert status(replace(other, weight=np.nextafter(other.weight, np.float32(2))), kept) is Status.FAIL
    assert status(replace(other, bias=np.ones(2, np.float32)), kept) is Status.FAIL
    assert status(replace(other, alpha=2.0), kept) is Status.FAIL
    assert status(other, replace(kept, epsilon=1e-3)) is Status.FAIL
    assert status(None, kept) is Status.WARN


def test_a_batch_norm_reported_as_folded_must_be_gone() -> None:
    good = case()
    layer = derive(good.original, Evidence(good.original.norms, good.folded.linears), good.report)
    assert layer.status is Status.FAIL
    assert "still in the model" in layer.because


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda c: replace(c, original=Evidence({}, c.original.linears)), "no stored statistics for after0"),
        (lambda c: replace(c, original=Evidence(c.original.norms, {})), "original model has no stored weights for op"),
        (lambda c: replace(c, folded=Evidence({}, {})), "folded model has no stored weights for op"),
        (lambda c: c.with_operator(groups=1, weight=np.zeros((8, 6, 3, 3))), "another operator"),
        (lambda c: replace(c, report=FoldReport((outcome("after0", "by-magic", "op"),))), "does not know the rule"),
        (lambda c: Case(Evidence({}, {}), Evidence({}, {}), FoldReport(())), "no operator with stored weights"),
        (lambda c: c.with_operator(weight=np.zeros((8, 3, 3, 3), np.int8)), "int8"),
    ],
)
def test_without_records_there_is_no_certificate(change: Callable[[Case], Case], because: str) -> None:
    layer = change(case()).derive()
    assert layer.status is Status.SKIPPED
    assert because in layer.because


def test_a_variance_below_minus_epsilon_is_never_certified() -> None:
    bad = case()
    negative = replace(bad.original.norms["after0"], variance=np.full(8, -1, np.float32))
    layer = replace(bad, original=Evidence({"after0": negative}, bad.original.linears)).derive()
    assert layer.status is Status.FAIL


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_an_ulp_is_the_distance_to_the_next_number(dtype: Any) -> None:
    info = ml_dtypes.finfo(dtype)
    values = np.array([1.0, 1.5, 3.9, 1e-3, float(info.smallest_normal), float(info.smallest_subnormal)])
    for value in values.astype(dtype):
        following = float(np.nextafter(value, dtype(np.inf)))
        assert Fraction(float(ulp(np.array(float(value)), np.dtype(dtype).name))) == Fraction(following) - Fraction(
            float(value)
        )

"""The certificate accepts what exact arithmetic gives in every layout and type, and rejects everything near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bnfold.evidence import Evidence, StoredAffine, StoredLinear, StoredNorm
from bnfold.frontends.torch.evidence import evidence
from bnfold.graph import Reason, Refusal, Site
from bnfold.origin import Chain, Joined, Leaf, Origin, Part, Stack, names_of
from bnfold.outcome import Absorbed, FoldReport, Outcome
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


Pair = tuple[Array, Array]


def folded_by_hand(op: StoredLinear, before: list[StoredNorm | Pair], after: list[StoredNorm | Pair]) -> StoredLinear:
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


def affine(bn: StoredNorm | Pair) -> Pair:
    if isinstance(bn, tuple):
        return bn
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


def outcome(name: str, rule: str, *into: str, is_norm: bool = True) -> Outcome:
    sites = tuple(Site(node, "Conv") for node in into)
    return Outcome(Site(name, "BatchNormalization"), None, None, rule, sites, None, is_norm=is_norm)


def reported(*rows: tuple[str, str]) -> FoldReport:
    """Affines by name, each with the side of `op` on which it was taken in, in order of composition."""
    rules = {"after": "into-producer", "before": "into-consumer"}
    return FoldReport(
        tuple(outcome(name, rules[side], "op") for name, side in rows),
        tuple(Absorbed("op", side, Leaf(name)) for name, side in rows),  # type: ignore[arg-type]
    )


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
    report = reported(
        *((f"before{i}", "before") for i in reversed(range(before))), *((f"after{i}", "after") for i in range(after))
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
    reversed_report = FoldReport(two.report.outcomes, two.report.absorbed[::-1])
    assert replace(two, report=reversed_report).derive().status is Status.FAIL


CHANNELS = 8
REPEATED, MOVED = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([-1, 0, 1, 2, 3, -1, -1, 3])
NORM, HALF = (norm(channels, np.random.default_rng(channels)) for channels in (CHANNELS, CHANNELS // 2))
OPERAND = np.random.default_rng(2).uniform(0.3, 2, (CHANNELS, 1, 1)).astype(np.float32)
AFFINES = {
    name: StoredAffine(name, None if name == "neg" else OPERAND) for name in ("mul", "div", "add", "sub", "rsub", "neg")
} | {"third": StoredAffine("div", np.array(3.0)), "twelfth": StoredAffine("add", np.full((1, 1), 1 / 12))}
STORED = Evidence({"norm": NORM, "half": HALF}, {}, AFFINES)  # type: ignore[arg-type]


def _travelled() -> dict[str, tuple[Origin, Pair]]:
    """Expressions, and their scales and shifts written out in float64."""
    (s, t), (p, q), c = affine(NORM), affine(HALF), OPERAND.reshape(-1).astype(np.float64)
    one, zero = np.ones(CHANNELS), np.zeros(CHANNELS)
    moved = np.where(MOVED < 0, 1.0, p[MOVED]), np.where(MOVED < 0, 0.0, q[MOVED])
    thirds = np.array([1 / 3, 1 / 3])
    stack = Stack(((Leaf("half"), 4), (None, 2), (Leaf("third"), 2)))
    shifts_only = Part(Leaf("norm"), scaled=False, shifted=-1.0)
    joined = Joined(Leaf("norm"), Chain(Part(Leaf("norm"), shifted=0.0), Leaf("add")))
    return {
        "mul": (Leaf("mul"), (c, zero)),
        "div": (Leaf("div"), (1 / c, zero)),
        "add": (Leaf("add"), (one, c)),
        "sub": (Leaf("sub"), (one, -c)),
        "rsub": (Leaf("rsub"), (-one, c)),
        "neg": (Leaf("neg"), (-one, zero)),
        "one number": (Leaf("third"), (one / 3, zero)),
        "one number after channels": (Chain(Leaf("norm"), Leaf("twelfth")), (s, t + 1 / 12)),
        "one number before channels": (Chain(Leaf("third"), Leaf("norm")), (s / 3, t)),
        "chain": (Chain(Chain(Leaf("norm"), Leaf("rsub")), Leaf("div")), (-s / c, (c - t) / c)),
        "repeated": (Part(Leaf("half"), REPEATED), (p[REPEATED], q[REPEATED])),
        "one number repeated": (Part(Leaf("third"), np.zeros(CHANNELS, int)), (one / 3, zero)),
        "moved": (Part(Leaf("half"), MOVED), moved),
        "picked twice": (Part(Part(Leaf("norm"), REPEATED), REPEATED), (s[REPEATED][REPEATED], t[REPEATED][REPEATED])),
        "scale": (Part(Leaf("norm"), shifted=0.0), (s, zero)),
        "opposite": (Part(Leaf("norm"), shifted=-1.0), (s, -t)),
        "shift": (shifts_only, (one, -t)),
        "stack": (stack, (np.concatenate([p, np.ones(2), thirds]), np.concatenate([q, np.zeros(4)]))),
        "joined": (joined, (s, t + c)),
    }


TRAVELLED = _travelled()
SQUARES = [("linear", (8, 8), 1), ("conv", (8, 2, 3), 4), ("conv_transpose", (8, 8, 2, 1), 1)]


def travelled(
    origin: Origin, pair: Pair, side: Any, layout: Any = "linear", shape: Any = (8, 8), groups: int = 1
) -> Case:
    """An operator that took in the affine of an expression, whose numbers are given."""
    random = np.random.default_rng(5)
    op = StoredLinear(layout, random.standard_normal(shape).astype(np.float32), None, groups)
    folded = folded_by_hand(op, [pair] * (side == "before"), [pair] * (side == "after"))
    outcomes = tuple(outcome(name, "into-consumer", "op") for name in names_of(origin))
    return Case(
        replace(STORED, linears={"op": op}),
        Evidence({}, {"op": folded}),
        FoldReport(outcomes, (Absorbed("op", side, origin),)),
    )


@pytest.mark.parametrize("square", SQUARES, ids=lambda square: square[0])
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(("origin", "pair"), TRAVELLED.values(), ids=TRAVELLED.keys())
def test_an_affine_that_travelled_is_followed(origin: Origin, pair: Pair, side: str, square: Any) -> None:
    found = vanished(travelled(origin, pair, side, *square))
    assert found.status is Status.PASS, found


def vanished(case: Case) -> Layer:
    """The certificate where every affine that the report does not speak of was left as it is."""
    gone = {outcome.site.name for outcome in case.report.outcomes}
    kept = {
        kind: {name: record for name, record in getattr(STORED, kind).items() if name not in gone}
        for kind in ("norms", "affines")
    }
    return replace(case, folded=replace(case.folded, **kept)).derive()


TAMPERED: dict[str, tuple[str, Callable[[Any], Origin]]] = {
    "index swapped": ("moved", lambda part: replace(part, index=MOVED[[0, 2, 1, *range(3, 8)]])),
    "index shifted by one": ("moved", lambda part: replace(part, index=np.roll(MOVED, 1))),
    "a channel that stays is scaled": ("moved", lambda part: replace(part, index=np.maximum(MOVED, 0))),
    "shift dropped": ("repeated", lambda part: replace(part, shifted=0.0)),
    "shift kept": ("scale", lambda part: replace(part, shifted=1.0)),
    "sign of the shift": ("opposite", lambda part: replace(part, shifted=1.0)),
    "scale kept": ("shift", lambda part: replace(part, scaled=True)),
    "order of a chain": ("chain", lambda chain: Chain(chain.second, chain.first)),
    "half a chain": ("chain", lambda chain: chain.first),
    "order of a stack": ("stack", lambda stack: Stack(stack.parts[::-1])),
    "half a join": ("joined", lambda joined: joined.first),
    "the other direction of a subtraction": ("sub", lambda leaf: Leaf("rsub")),
    "multiplied where divided": ("div", lambda leaf: Leaf("mul")),
}


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(("name", "tamper"), TAMPERED.values(), ids=TAMPERED.keys())
def test_an_expression_that_says_something_else_is_rejected(
    name: str, tamper: Callable[[Any], Origin], side: str
) -> None:
    origin, pair = TRAVELLED[name]
    layer = vanished(travelled(tamper(origin), pair, side))
    assert layer.status is Status.FAIL
    assert "ulp from what" in layer.because


def test_a_quotient_is_divided_and_not_multiplied_by_a_rounded_reciprocal() -> None:
    """In float32 1/3 is off by a third of an ulp, which must not be hidden in the allowance."""
    origin, (scale, shift) = TRAVELLED["one number"]
    rounded = scale.astype(np.float32).astype(np.float64), shift
    assert vanished(travelled(origin, rounded, "after")).status is Status.FAIL


SWAP = np.array([1, 0, *range(2, CHANNELS)])
PAIR_OF_INVERSES = Chain(Part(Leaf("mul"), SWAP), Part(Leaf("div"), SWAP))


LEFT = Outcome(Site("mul", "Mul"), 8, 1, None, (), Refusal(Reason.READ_BY_NONLINEARITY), is_norm=False)


def _nobody(origin: Origin) -> Any:
    return Absorbed(None, "before", origin)  # type: ignore[arg-type]


def _rows(*names: str, into: tuple[str, ...] = ("op",)) -> tuple[Outcome, ...]:
    return tuple(outcome(name, "into-producer", *into) for name in names)


def norm_taken(*more: Any, rows: tuple[Outcome, ...] = (), first: Origin = Leaf("norm")) -> Layer:
    """`norm` went into `op`; the report says so, and more."""
    fine = travelled(Leaf("norm"), affine(NORM), "after")
    report = FoldReport((*fine.report.outcomes, *rows), (Absorbed("op", "after", first), *more))
    return vanished(replace(fine, report=report))


def test_what_cancels_or_does_nothing_needs_no_operator() -> None:
    assert norm_taken(_nobody(PAIR_OF_INVERSES), rows=_rows("mul", "div", into=())).status is Status.PASS
    still = Part(Leaf("norm"), np.full(CHANNELS, -1))
    assert norm_taken(_nobody(still)).status is Status.PASS
    ones = replace(STORED.affines["mul"], constant=np.ones((1, CHANNELS), np.float32))
    fine = travelled(Leaf("norm"), affine(NORM), "after")
    report = FoldReport((*fine.report.outcomes, *_rows("mul", into=())), fine.report.absorbed)
    original = replace(fine.original, affines={**AFFINES, "mul": ones})
    assert vanished(replace(fine, original=original, report=report)).status is Status.PASS


CONTRADICTIONS: dict[str, tuple[Callable[[], Layer], str, str]] = {
    "nobody took it": (
        lambda: norm_taken(rows=_rows("mul", into=())),
        "mul is reported as folded, but no operator took it in",
        "mul",
    ),
    "its operator took in something else": (
        lambda: norm_taken(rows=_rows("mul")),
        "mul is reported as folded, but no operator took it in",
        "mul",
    ),
    "its operator took in nothing": (
        lambda: norm_taken(rows=_rows("mul", into=("head",))),
        "mul is reported as folded into head, which took nothing in",
        "mul",
    ),
    "taken in, and not reported": (
        lambda: norm_taken(Absorbed("op", "after", Leaf("mul")), rows=(LEFT,)),
        "op took in mul, which is not reported as folded into it",
        "mul",
    ),
    "taken in by another operator": (
        lambda: norm_taken(rows=_rows("mul", into=()), first=Chain(Leaf("norm"), Leaf("mul"))),
        "op took in mul, which is not reported as folded into it",
        "mul",
    ),
    "no inverses": (
        lambda: norm_taken(_nobody(Chain(Leaf("mul"), Leaf("mul"))), rows=_rows("mul", into=())),
        "mul do not cancel, yet they are reported to",
        "mul",
    ),
    "inverses of other channels": (
        lambda: norm_taken(_nobody(Chain(Leaf("mul"), Part(Leaf("div"), SWAP))), rows=_rows("mul", "div", into=())),
        "mul and div do not cancel, yet they are reported to",
        "mul",
    ),
    "joined with another scale": (
        lambda: norm_taken(rows=_rows("mul"), first=Joined(Leaf("norm"), Leaf("mul"))),
        "the scales of norm and mul differ where they are joined",
        "norm",
    ),
    "a channel that is not there": (
        lambda: norm_taken(rows=_rows("half"), first=Chain(Leaf("norm"), Leaf("half"))),
        "what half became has 4 channels, and channel 7 is used",
        "half",
    ),
}


@pytest.mark.parametrize(("tampered", "because", "name"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_report_that_contradicts_itself_is_rejected(tampered: Callable[[], Layer], because: str, name: str) -> None:
    layer = tampered()
    assert layer.status is Status.FAIL
    assert layer.because == because
    assert layer.affine == name


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_constant_may_repeat_along_other_axes_and_vary_along_one(axis: int) -> None:
    shape = [2, 2, 2]
    shape[axis] = CHANNELS
    numbers = np.moveaxis(np.broadcast_to(OPERAND.reshape(-1), (2, 2, CHANNELS)), -1, axis)
    assert list(numbers.shape) == shape
    case = travelled(Leaf("mul"), TRAVELLED["mul"][1], "after")
    repeated = {**AFFINES, "mul": replace(STORED.affines["mul"], constant=numbers)}
    assert vanished(replace(case, original=replace(case.original, affines=repeated))).status is Status.PASS
    varied = numbers.copy()
    varied[1, 1, 1] *= 2
    other = {**AFFINES, "mul": replace(STORED.affines["mul"], constant=varied)}
    layer = vanished(replace(case, original=replace(case.original, affines=other)))
    assert layer.status is Status.FAIL
    assert layer.because == "the constant of mul is not one number per channel"


def test_in_float64_a_number_may_be_off_by_a_few_ulp_and_no_more() -> None:
    op = StoredLinear("linear", np.eye(CHANNELS), None)
    folded = replace(op, bias=OPERAND.reshape(-1).astype(np.float64))
    for factor, status in ((1 + 2**-51, Status.PASS), (1 + 2**-48, Status.FAIL)):
        wrong = Evidence({}, {"op": replace(folded, bias=folded.bias * factor)})  # type: ignore[operator]
        case = Case(replace(STORED, linears={"op": op}), wrong, reported(("add", "after")))
        assert vanished(case).status is status


def test_a_model_of_elementwise_operators_is_certified_too() -> None:
    one = StoredAffine("mul", np.ones(1))
    assert (
        derive(Evidence({}, {}, {"mul": one}), Evidence({}, {}), FoldReport(_rows("mul", into=()))).status
        is Status.PASS
    )


def test_the_bias_of_a_product_may_be_an_affine_of_its_own() -> None:
    """An operator that holds the bias is taken in like any other; else it goes with the product."""
    random = np.random.default_rng(3)
    op = StoredLinear("matmul", random.standard_normal((8, 8)), OPERAND.reshape(-1).astype(np.float64), added="add")
    folded = replace(folded_by_hand(op, [], [NORM]), added="add_1")
    original = replace(STORED, linears={"op": op})
    rows = reported(("norm", "after")).outcomes
    apart = (Absorbed("op", "after", Chain(Leaf("add"), Leaf("norm"))),)
    together = (Absorbed("op", "after", Leaf("norm")),)
    for absorbed, kept in ((apart, {"add"}), (together, set())):
        affines = {name: record for name, record in AFFINES.items() if name not in kept}
        layer = derive(original, Evidence({"half": HALF}, {"op": folded}, affines), FoldReport(rows, absorbed))
        assert layer.status is Status.PASS, layer
    still = derive(original, Evidence({"half": HALF}, {"op": folded}, AFFINES), FoldReport(rows, apart))
    assert (still.status, still.affine) == (Status.FAIL, "add")
    rewritten = {**AFFINES, "add": replace(STORED.affines["add"], constant=OPERAND * 2)}
    assert (
        derive(original, Evidence({"half": HALF}, {"op": folded}, rewritten), FoldReport(rows, together)).status
        is Status.PASS
    )


def test_a_way_too_long_to_follow_is_no_certificate() -> None:
    origin: Origin = Leaf("norm")
    for _ in range(2000):
        origin = Part(origin)
    case = travelled(Leaf("norm"), affine(NORM), "after")
    layer = vanished(replace(case, report=replace(case.report, absorbed=(Absorbed("op", "after", origin),))))
    assert layer.status is Status.SKIPPED
    assert "too long" in layer.because


def test_what_is_used_twice_again_and_again_is_evaluated_once() -> None:
    origin: Origin = Part(Leaf("norm"), shifted=0.0)
    for _ in range(64):
        origin = Joined(origin, origin)
    scale, _ = affine(NORM)
    case = travelled(Leaf("norm"), (scale, np.zeros(CHANNELS)), "after")
    report = replace(case.report, absorbed=(Absorbed("op", "after", origin),))
    assert vanished(replace(case, report=report)).status is Status.PASS


def test_elementwise_operators_are_counted_apart() -> None:
    found = norm_taken(
        Absorbed("op", "after", Leaf("neg")), rows=(outcome("neg", "into-producer", "op", is_norm=False),)
    )
    assert found.status is Status.FAIL, "the weights hold the batch norm alone"
    case = travelled(Leaf("neg"), TRAVELLED["neg"][1], "after")
    rows = (outcome("neg", "into-producer", "op", is_norm=False),)
    layer = vanished(replace(case, report=replace(case.report, outcomes=rows)))
    assert layer.because.startswith("1 elementwise operator derived again in 1 operator,")


def test_an_elementwise_operator_must_vanish_where_reported_and_else_stay_as_it_is() -> None:
    case = travelled(Leaf("mul"), TRAVELLED["mul"][1], "after")
    kept = {name: record for name, record in AFFINES.items() if name != "mul"}
    norms = {"norm": NORM, "half": HALF}

    def layer(affines: dict[str, Any]) -> Layer:
        return replace(case, folded=replace(case.folded, norms=norms, affines=affines)).derive()

    assert layer(kept).status is Status.PASS
    still = layer(AFFINES)
    assert (still.status, still.affine) == (Status.FAIL, "mul")
    assert "still in the model" in still.because
    for other in (replace(kept["add"], op="sub"), replace(kept["add"], constant=OPERAND * np.float32(2))):
        changed = layer({**kept, "add": other})
        assert (changed.status, changed.affine) == (Status.FAIL, "add")
    assert layer({name: kept[name] for name in kept if name != "add"}).status is Status.WARN


def test_cancellation_in_float64_is_no_failure_but_float32_arithmetic_is() -> None:
    """b − μ is tiny beside β: what float64 loses is allowed for, what float32 loses is not."""
    one = np.ones(1, np.float32)
    mean = np.array([1e4], np.float32)
    bn = StoredNorm(np.array([3.0], np.float32), np.array([0.0], np.float32), mean, one * 7, 1e-5)
    op = StoredLinear("linear", one.reshape(1, 1), mean + np.float32(2**-9), 1)
    folded = folded_by_hand(op, [], [bn])
    report = reported(("bn", "after"))
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
    report = FoldReport((*touched.report.outcomes, left), touched.report.absorbed)
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
    assert status(other, replace(kept, kept=0.9, dropout=0.5, rectified=True)) is Status.PASS
    assert status(None, kept) is Status.WARN


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_untouched_operator_is_identical_to_itself_even_where_it_is_no_number(dtype: Any) -> None:
    touched = case()
    other = {"other": StoredLinear("linear", np.array([[np.nan, np.inf], [0, 1]]).astype(dtype), None)}
    original, folded = (
        replace(found, linears={**found.linears, **other}) for found in (touched.original, touched.folded)
    )
    assert derive(original, folded, touched.report).status is Status.PASS


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


def test_what_nobody_reads_may_vanish_and_nothing_else_may() -> None:
    """The affine and the operator of a dead branch fold away with what they share a value with."""
    fine = travelled(Leaf("norm"), affine(NORM), "after")
    report = FoldReport((*fine.report.outcomes, *_rows("mul")), fine.report.absorbed)
    case = replace(fine, report=report)
    assert vanished(case).status is Status.FAIL
    assert vanished(replace(case, original=replace(case.original, unread=frozenset({"mul"})))).status is Status.PASS
    assert vanished(replace(case, original=replace(case.original, unread=frozenset({"add"})))).status is Status.FAIL
    unbiased = fine.with_operator(bias=None)
    for where, status in ((frozenset({"op"}), Status.PASS), (frozenset(), Status.FAIL)):
        records = [replace(unbiased.original, unread=frozenset({"op"})), replace(unbiased.folded, unread=where)]
        assert vanished(replace(unbiased, original=records[0], folded=records[1])).status is status
    gone = replace(unbiased, folded=replace(unbiased.folded, linears={}))
    assert vanished(gone).status is Status.SKIPPED
    idle = replace(gone, original=replace(gone.original, unread=frozenset({"op"})))
    assert vanished(idle).status is Status.PASS, "an operator of a dead branch may go altogether"


def test_an_addition_that_reads_a_product_once_the_factor_is_gone_is_no_bias() -> None:
    """`x @ W * c + t` became `x @ W' + t`: the addition stays an operator of its own, and as it was."""
    fine = travelled(Leaf("mul"), TRAVELLED["mul"][1], "after", "matmul")
    kept = {name: record for name, record in AFFINES.items() if name not in ("mul", "add")}

    def layer(term: Array) -> Layer:
        op = replace(fine.folded.linears["op"], bias=term.reshape(-1), added="add")
        return derive(fine.original, Evidence({"norm": NORM, "half": HALF}, {"op": op}, kept), fine.report)

    assert layer(OPERAND).status is Status.PASS
    wrong = layer(OPERAND * np.float32(1.5))
    assert (wrong.status, wrong.affine) == (Status.FAIL, "add")


def test_a_program_is_read_by_the_names_that_torch_gives_its_arguments() -> None:
    """The bias of `addmm` and a constant first operand are seen, and what reaches no result is known."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bias", torch.tensor([1.0, 2.0]))
            self.register_buffer("weight", torch.ones(3, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dead = x * 3.0
            _ = torch.relu(dead)
            return 1.5 + torch.addmm(self.bias, x, self.weight, alpha=2, beta=-1) * (self.bias + 1e-5)

    found = evidence(torch.export.export(Net(), (torch.ones(4, 3),)))
    (op,) = found.linears.values()
    assert op.bias is not None
    assert op.bias.tolist() == [1, 2]
    assert (op.alpha, op.beta) == (2, -1)
    assert [(name, record.op) for name, record in found.affines.items() if name not in found.unread] == [
        ("mul_1", "mul"),
        ("add_1", "add"),
    ]
    assert "mul" in found.unread

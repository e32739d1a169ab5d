"""The laws of the algebra: `@` is composition, and its numbers agree with brute force and with exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra import Array, ChannelAffine, LinearOp, Parameters
from bnfold.graph import Reason, batch_norm


def agree(left: Array, right: Array) -> None:
    """Equal to the rounding of float64."""
    np.testing.assert_allclose(left, right, rtol=1e-13, atol=1e-12)


def affine(rng: np.random.Generator, channels: int, axis: int = 1) -> ChannelAffine:
    return ChannelAffine(rng.normal(size=channels), rng.normal(size=channels), axis)


def linear(rng: np.random.Generator, shape: tuple[int, int, int, int], *, bordered: bool = False) -> LinearOp:
    """A convolution along axis 1 with taps of the shape `(groups, out per group, in per group, tap)`."""
    groups, outs, ins, _ = shape
    parameters = Parameters(rng.normal(size=shape), rng.normal(size=groups * outs))
    return LinearOp(ins * groups, outs * groups, groups, 1, 1, bordered, ("stored",), lambda: parameters)


def apply_affine(map_: ChannelAffine, value: Array) -> Array:
    """`scale[c] · x + shift[c]`, one channel at a time."""
    result = value.copy()
    for index, channel in enumerate(np.moveaxis(result, map_.axis, 0)):
        channel[...] = channel * map_.scale[index] + map_.shift[index]
    return result


def apply_linear(op: LinearOp, value: Array, padding: int = 0) -> Array:
    """A 1-D convolution of `(batch, channels, length)`, stride 1, written as the sum it is."""
    parameters = op.evaluate()
    groups, outs, ins, taps = parameters.taps.shape
    padded = np.pad(value, ((0, 0), (0, 0), (padding, padding)))
    length = padded.shape[2] - taps + 1
    result = np.zeros((len(value), op.out_channels, length))
    for group, out, position in product(range(groups), range(outs), range(length)):
        seen = padded[:, group * ins : (group + 1) * ins, position : position + taps]
        channel = group * outs + out
        result[:, channel, position] = (seen * parameters.taps[group, out]).sum(axis=(1, 2)) + parameters.bias[channel]
    return result


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    return tuple(draw(st.integers(1, high)) for high in (3, 4, 4, 3))  # type: ignore[return-value]


def same_parameters(left: LinearOp, right: LinearOp) -> None:
    mine, yours = left.evaluate(), right.evaluate()
    agree(mine.taps, yours.taps)
    agree(mine.bias, yours.bias)


def same_affine(left: ChannelAffine, right: ChannelAffine) -> None:
    agree(left.scale, right.scale)
    agree(left.shift, right.shift)
    assert left.axis == right.axis


@given(shapes(), st.integers(0, 2**32 - 1))
def test_composition_is_associative_through_a_linear_operator(shape: tuple[int, int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    op = linear(rng, shape)
    after, before = affine(rng, op.out_channels), affine(rng, op.in_channels)
    same_parameters((after @ op) @ before, after @ (op @ before))


@given(shapes(), st.integers(0, 2**32 - 1))
def test_two_affines_compose_before_or_one_after_the_other(shape: tuple[int, int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    op = linear(rng, shape)
    first, second = affine(rng, op.out_channels), affine(rng, op.out_channels)
    same_parameters((second @ first) @ op, second @ (first @ op))
    outer, inner = affine(rng, op.in_channels), affine(rng, op.in_channels)
    same_parameters(op @ (outer @ inner), (op @ outer) @ inner)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_affines_are_associative(channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (affine(rng, channels, axis=2) for _ in range(3))
    same_affine((a @ b) @ c, a @ (b @ c))


@given(shapes(), st.integers(0, 2**32 - 1))
def test_composition_is_function_application(shape: tuple[int, int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    op = linear(rng, shape)
    after, before = affine(rng, op.out_channels), affine(rng, op.in_channels)
    value = rng.normal(size=(2, op.in_channels, 5))
    agree(apply_linear(after @ op, value), apply_affine(after, apply_linear(op, value)))
    agree(apply_linear(op @ before, value), apply_linear(op, apply_affine(before, value)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_affine_after_affine_is_function_application(axis: int) -> None:
    rng = np.random.default_rng(axis)
    value = rng.normal(size=(3, 4, 5))
    outer, inner = (affine(rng, value.shape[axis], axis) for _ in range(2))
    agree(apply_affine(outer @ inner, value), apply_affine(outer, apply_affine(inner, value)))


def test_a_linear_layer_is_an_operator_with_one_tap() -> None:
    rng = np.random.default_rng(4)
    op = linear(rng, (1, 5, 3, 1))
    after, before = affine(rng, 5), affine(rng, 3)
    weight, bias = op.evaluate().taps[0, :, :, 0], op.evaluate().bias
    value = rng.normal(size=(7, 3))
    folded = ((after @ op) @ before).evaluate()
    expected = (value * before.scale + before.shift) @ weight.T + bias
    agree(value @ folded.taps[0, :, :, 0].T + folded.bias, expected * after.scale + after.shift)


def test_a_scale_crosses_padding_and_a_shift_does_not() -> None:
    """Why `bordered` exists: a constant added to the input is not a constant added to the output near a border."""
    rng = np.random.default_rng(5)
    op = linear(rng, (1, 3, 2, 3), bordered=True)
    value = rng.normal(size=(2, 2, 6))
    scale = ChannelAffine(rng.normal(size=2), np.zeros(2), 1)
    assert not scale.shifts
    agree(apply_linear(op @ scale, value, padding=1), apply_linear(op, apply_affine(scale, value), padding=1))
    shift = ChannelAffine(np.ones(2), np.array([0.0, 0.5]), 1)
    assert shift.shifts
    error = apply_linear(op @ shift, value, padding=1) - apply_linear(op, apply_affine(shift, value), padding=1)
    assert np.abs(error[:, :, 1:-1]).max() < 1e-12
    assert np.abs(error[:, :, [0, -1]]).max() > 1e-3


def test_normalisation_agrees_with_exact_fractions() -> None:
    """`γ (x − μ) / √(σ² + ε) + β` where σ² + ε is a perfect square, so that fractions give the exact answer."""
    gamma, beta = [Fraction(3, 4), Fraction(-5, 2), Fraction(0)], [Fraction(1, 8), Fraction(7), Fraction(-2)]
    mean, root = [Fraction(9, 16), Fraction(-11, 4), Fraction(5)], [Fraction(1, 2), Fraction(3), Fraction(7, 4)]
    epsilon = Fraction(1, 1024)
    variance = [r * r - epsilon for r in root]

    def array(values: list[Fraction]) -> Array:
        return np.array([float(v) for v in values])

    batch_norm = ChannelAffine.normalisation(
        array(gamma), array(beta), array(mean), array(variance), float(epsilon), axis=1
    )
    inputs = [Fraction(0), Fraction(1), Fraction(-13, 8), Fraction(1000)]
    for x, channel in product(inputs, range(3)):
        exact = gamma[channel] * (x - mean[channel]) / root[channel] + beta[channel]
        got = batch_norm.scale[channel] * float(x) + batch_norm.shift[channel]
        assert got == pytest.approx(float(exact), rel=1e-14, abs=1e-14)


def test_normalisation_of_the_identity_is_the_identity() -> None:
    one, zero = np.ones(3), np.zeros(3)
    batch_norm = ChannelAffine.normalisation(one, zero, zero, one, epsilon=0.0, axis=1)
    np.testing.assert_array_equal(batch_norm.scale, one)
    assert not batch_norm.shifts


COMPOSITIONS: list[tuple[str, Callable[[LinearOp, ChannelAffine, ChannelAffine], LinearOp]]] = [
    ("alone", lambda op, a, b: op),
    ("a @ op", lambda op, a, b: a @ op),
    ("op @ a", lambda op, a, b: op @ a),
    ("b @ op", lambda op, a, b: b @ op),
    ("b @ a @ op", lambda op, a, b: b @ (a @ op)),
    ("a @ b @ op", lambda op, a, b: a @ (b @ op)),
    ("a @ op @ b", lambda op, a, b: (a @ op) @ b),
    ("b @ op @ a", lambda op, a, b: (b @ op) @ a),
    ("op @ b @ a", lambda op, a, b: (op @ b) @ a),
]


def test_equal_sources_mean_equal_parameters() -> None:
    """Two copies of one weight that took in equal affines may share their storage again: `source` decides."""
    rng = np.random.default_rng(6)
    op = linear(rng, (1, 3, 3, 2))
    a, b = affine(rng, 3), affine(rng, 3)
    equal_to_a = ChannelAffine(a.scale.copy(), a.shift.copy(), a.axis)
    for (left, compose), (right, compose_again) in product(COMPOSITIONS, COMPOSITIONS):
        mine, yours = compose(op, a, b), compose_again(op, equal_to_a, b)
        if mine.source == yours.source:
            np.testing.assert_array_equal(mine.evaluate().taps, yours.evaluate().taps)
            np.testing.assert_array_equal(mine.evaluate().bias, yours.evaluate().bias)
        assert (mine.source == yours.source) == (left == right)


@pytest.mark.parametrize("part", ["scale", "shift"])
def test_sources_differ_where_an_affine_does(part: str) -> None:
    rng = np.random.default_rng(9)
    op, a = linear(rng, (1, 3, 3, 2)), affine(rng, 3)
    other = replace(a, **{part: getattr(a, part) + 1e-9})
    assert (a @ op).source != (other @ op).source
    assert (op @ a).source != (op @ other).source


def test_parameters_are_evaluated_only_when_asked_for() -> None:
    calls: list[int] = []

    def evaluate() -> Parameters:
        calls.append(1)
        return Parameters(np.ones((1, 2, 2, 1)), np.zeros(2))

    op = LinearOp(2, 2, 1, 1, 1, False, ("stored",), evaluate)
    rng = np.random.default_rng(7)
    folded = affine(rng, 2) @ op @ affine(rng, 2)
    assert not calls
    folded.evaluate()
    assert calls == [1]


def test_composition_leaves_its_operands_alone() -> None:
    rng = np.random.default_rng(8)
    op = linear(rng, (2, 2, 2, 3))
    after, before = affine(rng, 4), affine(rng, 4)
    arrays = (op.evaluate().taps, op.evaluate().bias, after.scale, after.shift, before.scale, before.shift)
    copies = [array.copy() for array in arrays]
    ((after @ op) @ before).evaluate()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_batch_norm_of_what_is_no_number_is_no_affine(which: int, value: float) -> None:
    """Whoever reads it sees that at once: no operator has to be asked whether it can hold the result."""
    statistics = [np.ones(3) for _ in range(4)]
    assert isinstance(batch_norm(*statistics, 1e-5), ChannelAffine)
    statistics[which][1] = value
    assert batch_norm(*statistics, 1e-5) is Reason.NON_FINITE

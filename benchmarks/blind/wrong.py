"""What a tool that folds gets wrong in numbers.

A wrong formula at one site of an otherwise correct fold (`FORMULAS`), or wrong numbers in one layer of a correct fold
(`NUMBERS`). Wrong structures are in `edits.py` and `structures.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from surgery import Array, Formula, Layer, Surgery, Unfit, fold, sites

Random = np.random.Generator
Change = Callable[[onnx.ModelProto, Random], onnx.ModelProto]


def by_scale(scale: Callable[[Layer], Array]) -> Formula:
    """The right structure with a wrong scale."""

    def formula(parts: Layer) -> tuple[Array, Array]:
        s = scale(parts)
        return parts.scaled(s), (parts.bias - parts.mean) * s + parts.beta

    return formula


def by_bias(bias: Callable[[Layer], Array]) -> Formula:
    return lambda parts: (parts.scaled(parts.scale), bias(parts))


def along_inputs(parts: Layer) -> tuple[Array, Array]:
    """The scale along the input channels, which goes unnoticed where there are as many of them."""
    if parts.weight.shape[0] != parts.weight.shape[1] or parts.groups != 1:
        raise Unfit("not square")
    turned = replace(parts, weight=parts.weight.swapaxes(0, 1)).scaled(parts.scale).swapaxes(0, 1)
    return turned, parts.folded()[1]


def blocks_confused(parts: Layer) -> tuple[Array, Array]:
    """The channels of groups in the order of a tile instead of a repeat."""
    if parts.groups < 2 or parts.groups == len(parts.scale):
        raise Unfit("no groups")
    order = np.arange(len(parts.scale)).reshape(parts.groups, -1).T.reshape(-1)
    return parts.scaled(parts.scale[order]), parts.folded()[1]


def swapped(numbers: Array, i: int = 0, j: int = 1) -> Array:
    order = np.arange(len(numbers))
    order[[i, j]] = order[[j, i]]
    return numbers[order]


def but_last(parts: Layer) -> tuple[Array, Array]:
    scale = parts.scale.copy()
    scale[-1] = 1
    bias = parts.folded()[1].copy()
    bias[-1] = parts.bias[-1]
    return parts.scaled(scale), bias


def needs_bias(parts: Layer) -> None:
    if not np.any(parts.bias):
        raise Unfit("no bias")


def bias_unscaled(parts: Layer) -> Array:
    needs_bias(parts)
    return parts.bias - parts.mean * parts.scale + parts.beta


def bias_lost(parts: Layer) -> Array:
    needs_bias(parts)
    return -parts.mean * parts.scale + parts.beta


def nan_in_one(parts: Layer) -> Array:
    bias = parts.folded()[1].copy()
    bias[len(bias) // 2] = np.nan
    return bias


FORMULAS: dict[str, Formula] = {
    "ε left out": by_scale(lambda p: p.gamma / np.sqrt(p.var)),
    "ε of another layer, 1e-3 for 1e-5 or the reverse": by_scale(
        lambda p: p.gamma / np.sqrt(p.var + (1e-3 if p.eps < 5e-4 else 1e-5))
    ),
    "√var + ε instead of √(var + ε)": by_scale(lambda p: p.gamma / (np.sqrt(p.var) + p.eps)),
    "the root left out": by_scale(lambda p: p.gamma / (p.var + p.eps)),
    "γ of the neighbour channel": by_scale(lambda p: np.roll(p.gamma, 1) / np.sqrt(p.var + p.eps)),
    "γ taken as 1": by_scale(lambda p: 1 / np.sqrt(p.var + p.eps)),
    "|γ|": by_scale(lambda p: np.abs(p.scale)),
    "the variance with n/(n-1), n = 4096": by_scale(lambda p: p.gamma / np.sqrt(p.var * 4096 / 4095 + p.eps)),
    "the scale computed in fp16": by_scale(lambda p: p.scale.astype(np.float16).astype(np.float64)),
    "the scale of two channels swapped": by_scale(lambda p: swapped(p.scale)),
    "scaled twice": lambda p: (p.scaled(p.scale**2), p.folded()[1]),
    "the weight not scaled": lambda p: (p.weight, p.folded()[1]),
    "β dropped": by_bias(lambda p: (p.bias - p.mean) * p.scale),
    "β of two channels swapped": by_bias(lambda p: (p.bias - p.mean) * p.scale + swapped(p.beta)),
    "the mean not scaled": by_bias(lambda p: p.bias * p.scale - p.mean + p.beta),
    "the mean dropped": by_bias(lambda p: p.bias * p.scale + p.beta),
    "the mean added": by_bias(lambda p: (p.bias + p.mean) * p.scale + p.beta),
    "the bias not scaled": by_bias(bias_unscaled),
    "the bias lost": by_bias(bias_lost),
    "NaN in the bias of one channel": by_bias(nan_in_one),
    "the last channel left out": but_last,
    "the scale along the input channels": along_inputs,
    "the channels of groups in another order": blocks_confused,
}


def one_number(numbers: Array, random: Random, change: Callable[[Any], Any]) -> Array:
    """One of the larger numbers changed."""
    made = numbers.copy().reshape(-1)
    candidates = np.argsort(-np.abs(made), kind="stable")[: max(1, len(made) // 4)]
    at = int(random.choice(candidates))
    made[at] = change(made[at])
    return made.reshape(numbers.shape)


def one_channel(numbers: Array, random: Random, factor: float) -> Array:
    made = numbers.copy()
    made[int(random.integers(len(made)))] *= factor
    return made


def as_int8(numbers: Array) -> Array:
    step = np.abs(numbers).max() / 127
    return (np.rint(numbers / step) * step).astype(numbers.dtype)


def through(kind: Any) -> Callable[[Array, Random], Array]:
    return lambda numbers, _: numbers.astype(kind).astype(numbers.dtype)


def small_to_zero(numbers: Array, _: Random) -> Array:
    return np.where(np.abs(numbers) < 0.02 * np.abs(numbers).max(), 0, numbers).astype(numbers.dtype)


def flipped(numbers: Array, _: Random) -> Array:
    if numbers.ndim < 3 or max(numbers.shape[2:]) < 2:
        raise Unfit("no kernel")
    return np.flip(numbers, axis=tuple(range(2, numbers.ndim)))


def kernel_turned(numbers: Array, _: Random) -> Array:
    if numbers.ndim != 4 or numbers.shape[2] != numbers.shape[3] or numbers.shape[2] < 2:
        raise Unfit("no square kernel")
    return numbers.swapaxes(2, 3)


def transposed(numbers: Array, _: Random) -> Array:
    if numbers.shape[0] != numbers.shape[1]:
        raise Unfit("not square")
    return numbers.swapaxes(0, 1)


def two_rows(numbers: Array, random: Random) -> Array:
    i, j = (int(each) for each in random.choice(len(numbers), 2, replace=False))
    return swapped(numbers, i, j)


def zero_row(numbers: Array, random: Random) -> Array:
    return one_channel(numbers, random, 0.0)


NUMBERS: dict[str, Callable[[Array, Random], Array]] = {
    "the sign of one weight": lambda n, r: one_number(n, r, lambda x: -x),
    "one weight off by 1e-3 of itself": lambda n, r: one_number(n, r, lambda x: x * (1 + 1e-3)),
    "one weight NaN": lambda n, r: one_number(n, r, lambda x: np.nan),
    "one channel off by 1e-2": lambda n, r: one_channel(n, r, 1 + 1e-2),
    "one channel off by 1e-3": lambda n, r: one_channel(n, r, 1 + 1e-3),
    "one channel off by 1e-4": lambda n, r: one_channel(n, r, 1 + 1e-4),
    "one channel off by 1e-5": lambda n, r: one_channel(n, r, 1 + 1e-5),
    "the layer stored through fp16": through(np.float16),
    "the layer stored through bf16": through(ml_dtypes.bfloat16),
    "the layer rounded to int8": lambda n, _: as_int8(n),
    "weights below 2 % of the largest set to zero": small_to_zero,
    "the kernel flipped": flipped,
    "height and width of the kernel swapped": kernel_turned,
    "the square weight transposed": transposed,
    "two output channels of the weight swapped": two_rows,
    "one output channel zero": zero_row,
}


def weights(surgery: Surgery) -> list[tuple[onnx.NodeProto, Array]]:
    found = []
    for node in surgery.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        numbers = surgery.array(node.input[1])
        if numbers is not None and numbers.ndim > 1 and numbers.dtype.kind == "f":
            found.append((node, numbers))
    return found


def with_formula(formula: Formula) -> Change:
    """The fold with this formula at a random site where it applies."""

    def change(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
        count = len(sites(Surgery(model)))
        for at in random.permutation(count):
            try:
                return fold(model, formula, int(at))
            except Unfit:
                continue
        raise Unfit("at no site")

    return change


def folded_or_not(model: onnx.ModelProto) -> onnx.ModelProto:
    """Correctly folded, where there is something to fold."""
    return fold(model) if sites(Surgery(model)) else Surgery(model).clean()


def with_numbers(spoil: Callable[[Array, Random], Array]) -> Change:
    """The correct fold with the weight of one random layer changed."""

    def change(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
        surgery = Surgery(folded_or_not(model))
        found = weights(surgery)
        for at in random.permutation(len(found)):
            node, numbers = found[int(at)]
            try:
                changed = spoil(numbers, random)
            except Unfit:
                continue
            node.input[1] = surgery.put(surgery.fresh("weight"), changed.astype(numbers.dtype))
            return surgery.clean()
        raise Unfit("no such layer")

    return change


def bias_off(factor: float) -> Change:
    """One element of one bias off by a factor."""

    def change(model: onnx.ModelProto, random: Random) -> onnx.ModelProto:
        surgery = Surgery(folded_or_not(model))
        found = [n for n in surgery.nodes("Conv", "Gemm", "ConvTranspose") if len(n.input) > 2]
        found = [n for n in found if (b := surgery.array(n.input[2])) is not None and np.any(b)]
        if not found:
            raise Unfit("no bias")
        node = found[int(random.integers(len(found)))]
        numbers = surgery.array(node.input[2])
        assert numbers is not None
        changed = one_number(numbers, random, lambda x: x * factor)
        node.input[2] = surgery.put(surgery.fresh("bias"), changed)
        return surgery.clean()

    return change


def whole_half(model: onnx.ModelProto, _: Random) -> onnx.ModelProto:
    """All weights through fp16."""
    surgery = Surgery(folded_or_not(model))
    for node, numbers in weights(surgery):
        node.input[1] = surgery.put(surgery.fresh("weight"), numbers.astype(np.float16).astype(numbers.dtype))
    return surgery.clean()

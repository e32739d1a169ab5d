"""Folds with one thing wrong in them: what a folder that has a bug would write.

A mutation is one function. Some spoil a batch norm of the original and fold that (`@of_norm`: the numbers are then what
a wrong formula gives, rounded once like a right fold); the others spoil what bnfold wrote (`@of_linear`). `spoiling.py`
finds the place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from spoiling import Array, Graph, Mutation, Pair, Site, Unfit

import bnfold

MUTATIONS: list[Mutation] = []
Norm = dict[str, Any]


def of_norm(name: str) -> Callable[[Callable[[Norm], Mapping[str, Any]]], Any]:
    """A mistake in the formula: other numbers for one batch norm (gamma, beta, mean, variance, epsilon, in float64),
    and then a correct fold."""

    def register(wrong: Callable[[Norm], Mapping[str, Any]]) -> Any:
        def spoil(pair: Pair, site: Site) -> onnx.ModelProto:
            graph = Graph(pair.original)
            ports = {"gamma": 1, "beta": 2, "mean": 3, "variance": 4}
            norm: Norm = {key: graph.read(site.norm, port).astype(np.float64) for key, port in ports.items()}
            norm["epsilon"] = graph.attribute(site.norm, "epsilon", 1e-5)
            for key, value in wrong(norm).items():
                if key == "epsilon":
                    graph.set_attribute(site.norm, key, value)
                else:
                    graph.write(site.norm, ports[key], value)
            return bnfold.fold(graph.model, merge="never").model

        MUTATIONS.append(Mutation(name, spoil))
        return wrong

    return register


@of_norm("epsilon ten times as large")
def _epsilon(norm: Norm) -> Mapping[str, Any]:
    return {"epsilon": 10 * norm["epsilon"]}


@of_norm("epsilon forgotten")
def _no_epsilon(norm: Norm) -> Mapping[str, Any]:
    return {"epsilon": 0.0}


@of_norm("sqrt(var) + eps")
def _outside(norm: Norm) -> Mapping[str, Any]:
    return {"variance": (np.sqrt(norm["variance"]) + norm["epsilon"]) ** 2 - norm["epsilon"]}


@of_norm("var scaled by 1 + 1e-5")
def _variance(norm: Norm) -> Mapping[str, Any]:
    return {"variance": norm["variance"] * (1 + 1e-5)}


@of_norm("var of n - 1 instead of n, n = 10,000")
def _bessel(norm: Norm) -> Mapping[str, Any]:
    return {"variance": norm["variance"] * (10_000 / 9_999)}


@of_norm("mean unscaled")
def _mean(norm: Norm) -> Mapping[str, Any]:
    scale = norm["gamma"] / np.sqrt(norm["variance"] + norm["epsilon"])
    return {"beta": norm["beta"] + norm["mean"] * scale - norm["mean"]}


@of_norm("mean scaled by gamma alone")
def _half_scaled(norm: Norm) -> Mapping[str, Any]:
    scale = norm["gamma"] / np.sqrt(norm["variance"] + norm["epsilon"])
    return {"beta": norm["beta"] + norm["mean"] * (scale - norm["gamma"])}


@of_norm("mean added instead of subtracted")
def _sign(norm: Norm) -> Mapping[str, Any]:
    return {"mean": -norm["mean"]}


@of_norm("beta ignored")
def _beta(norm: Norm) -> Mapping[str, Any]:
    return {"beta": np.zeros_like(norm["beta"])}


@of_norm("gamma ignored")
def _gamma(norm: Norm) -> Mapping[str, Any]:
    return {"gamma": np.ones_like(norm["gamma"])}


@of_norm("running statistics swapped")
def _swapped(norm: Norm) -> Mapping[str, Any]:
    return {"mean": norm["variance"], "variance": np.abs(norm["mean"])}


@of_norm("statistics of two channels swapped")
def _two(norm: Norm) -> Mapping[str, Any]:
    mean, variance = norm["mean"].copy(), norm["variance"].copy()
    mean[[0, -1]], variance[[0, -1]] = mean[[-1, 0]], variance[[-1, 0]]
    return {"mean": mean, "variance": variance}


@of_norm("statistics shifted by one channel")
def _shifted(norm: Norm) -> Mapping[str, Any]:
    return {"mean": np.roll(norm["mean"], 1), "variance": np.roll(norm["variance"], 1)}


def of_linear(name: str) -> Callable[[Callable[[Graph, str, Graph], None]], Any]:
    """A mistake in what is written: `wrong(graph, node, original)` spoils the fold at the node."""

    def register(wrong: Callable[[Graph, str, Graph], None]) -> Any:
        def spoil(pair: Pair, site: Site) -> onnx.ModelProto:
            graph, original = Graph(pair.folded), Graph(pair.original)
            wrong(graph, site.linear, original)
            return graph.model

        MUTATIONS.append(Mutation(name, spoil))
        return wrong

    return register


def output_axis(graph: Graph, node: str) -> int:
    """Which axis of the stored weight numbers the output channels."""
    op = graph.nodes[node].op_type
    if op == "Conv" or (op == "Gemm" and graph.attribute(node, "transB", 0)):
        return 0
    if op in ("MatMul", "Gemm"):
        return -1
    raise Unfit


def rows(graph: Graph, node: str, change: Callable[[Array], Array]) -> None:
    """Change the weight, its output channels first."""
    axis = output_axis(graph, node)
    weight = np.moveaxis(graph.read(node, 1), axis, 0).copy()
    graph.write(node, 1, np.moveaxis(change(weight), 0, axis))


def scaled(array: Array, index: int, factor: float) -> Array:
    array[index] = array[index].astype(np.float64) * factor
    return array


def largest(array: Array) -> int:
    """The row with the largest number."""
    return int(np.abs(array).reshape(len(array), -1).max(axis=1).argmax())


@of_linear("two output channels swapped")
def _channels(graph: Graph, node: str, original: Graph) -> None:
    rows(graph, node, lambda weight: weight[[1, 0, *range(2, len(weight))]])


@of_linear("one channel scaled by 1 + 1e-5")
def _channel(graph: Graph, node: str, original: Graph) -> None:
    rows(graph, node, lambda weight: scaled(weight, largest(weight), 1 + 1e-5))


@of_linear("one channel scaled by 1 + 1e-4")
def _channel_more(graph: Graph, node: str, original: Graph) -> None:
    rows(graph, node, lambda weight: scaled(weight, largest(weight), 1 + 1e-4))


@of_linear("one bias 1 % off")
def _bias(graph: Graph, node: str, original: Graph) -> None:
    bias = graph.read(node, 2)
    graph.write(node, 2, scaled(bias, largest(bias), 1.01))


@of_linear("bias dropped")
def _no_bias(graph: Graph, node: str, original: Graph) -> None:
    graph.write(node, 2, np.zeros_like(graph.read(node, 2)))


@of_linear("one layer rounded through fp16")
def _half(graph: Graph, node: str, original: Graph) -> None:
    rows(graph, node, lambda weight: weight.astype(np.float16))


@of_linear("one layer rounded through bf16")
def _brain(graph: Graph, node: str, original: Graph) -> None:
    rows(graph, node, lambda weight: weight.astype(ml_dtypes.bfloat16))


@of_linear("wrong group")
def _group(graph: Graph, node: str, original: Graph) -> None:
    groups = graph.attribute(node, "group", 1)
    if groups == 1:
        raise Unfit
    rows(graph, node, lambda weight: np.roll(weight, len(weight) // groups, axis=0))


@of_linear("kernel flipped")
def _flipped(graph: Graph, node: str, original: Graph) -> None:
    if graph.read(node, 1).shape[-1] == 1 or graph.read(node, 1).ndim < 3:
        raise Unfit
    rows(graph, node, lambda weight: weight[..., ::-1])


@of_linear("pads shifted by one")
def _pads(graph: Graph, node: str, original: Graph) -> None:
    pads = graph.attribute(node, "pads", [])
    if not any(pads):
        raise Unfit
    half = len(pads) // 2
    graph.set_attribute(node, "pads", [*(begin - 1 for begin in pads[:half]), *(end + 1 for end in pads[half:])])


def scale(graph: Graph, node: str, original: Graph) -> Array:
    """What folding multiplied each output channel by: read where the weight is largest."""
    axis = output_axis(graph, node)
    before, after = (np.moveaxis(each.read(node, 1).astype(np.float64), axis, 0) for each in (original, graph))
    before, after = before.reshape(len(before), -1), after.reshape(len(after), -1)
    largest_of_each = np.arange(len(before)), np.abs(before).argmax(axis=1)
    return np.asarray(after[largest_of_each] / before[largest_of_each])


@of_linear("bias unscaled")
def _bias_unscaled(graph: Graph, node: str, original: Graph) -> None:
    bias = original.read(node, 2).astype(np.float64)
    if not bias.any():
        raise Unfit
    graph.write(node, 2, graph.read(node, 2) + bias * (1 - scale(graph, node, original)))


@of_linear("scale on the axis of the inputs")
def _axis(graph: Graph, node: str, original: Graph) -> None:
    axis = output_axis(graph, node)
    before = np.moveaxis(original.read(node, 1).astype(np.float64), axis, 0)
    if before.shape[0] != before.shape[1]:
        raise Unfit
    factors = scale(graph, node, original).reshape(1, -1, *[1] * (before.ndim - 2))
    rows(graph, node, lambda _: before * factors)


@of_linear("stale copy of the weight")
def _stale(graph: Graph, node: str, original: Graph) -> None:
    graph.write(node, 1, original.read(node, 1))


@of_linear("scale applied twice")
def _twice(graph: Graph, node: str, original: Graph) -> None:
    before, after = (each.read(node, 1).astype(np.float64) for each in (original, graph))
    graph.write(node, 1, np.divide(after * after, before, out=after.copy(), where=before != 0))


@of_linear("NaN in one channel")
def _nan(graph: Graph, node: str, original: Graph) -> None:
    rows(graph, node, lambda weight: scaled(weight, 0, np.nan))


@of_linear("one input of the next sum dropped")
def _dropped(graph: Graph, node: str, original: Graph) -> None:
    """The branch that ends with the operator goes: the sum that reads it becomes its other term."""
    value = graph.nodes[node].output[0]
    sums = [each for each in graph.model.graph.node if each.op_type == "Add" and value in each.input]
    others = [name for each in sums for name in each.input if name != value]
    if not others or any(name in {tensor.name for tensor in graph.model.graph.initializer} for name in others):
        raise Unfit
    sums[0].op_type = "Identity"
    del sums[0].input[:]
    sums[0].input.append(others[0])


@of_linear("the activation behind it dropped")
def _activation(graph: Graph, node: str, original: Graph) -> None:
    value = graph.nodes[node].output[0]
    readers = [each for each in graph.model.graph.node if value in each.input]
    if [each.op_type for each in readers] not in (["Relu"], ["HardSwish"]):
        raise Unfit
    readers[0].op_type = "Identity"
    del readers[0].attribute[:]

"""An ONNX graph as something to cut into: values by name, who makes them, who reads them, and a fold of our own.

The fold knows only a batch norm right behind a Conv, a ConvTranspose or a Gemm. Its arithmetic is float64, rounded
once; `formula` replaces it at one site, which is how a mutant is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


class Unfit(Exception):
    """The graph has nothing to which this change applies."""


class Surgery:
    """A copy of a model, and the words to change it with."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph

    def array(self, name: str) -> Array | None:
        """The numbers of a value, if they are stored, or spread from one stored number."""
        for stored in self.graph.initializer:
            if stored.name == name:
                return numpy_helper.to_array(stored)
        node = self.maker(name)
        if node is None:
            return None
        if node.op_type == "Constant" and attribute(node, "value") is not None:
            return numpy_helper.to_array(attribute(node, "value"))
        if node.op_type in ("Identity", "CastLike", "Expand"):
            found = self.array(node.input[0])
            return found if node.op_type == "Identity" or found is None or found.size == 1 else None
        return None

    def put(self, name: str, array: Array) -> str:
        """Store numbers under a name, in place of what was there."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        for stored in self.graph.initializer:
            if stored.name == name:
                stored.CopyFrom(tensor)
                return name
        self.graph.initializer.append(tensor)
        return name

    def fresh(self, stem: str) -> str:
        taken = {each.name for each in self.graph.initializer} | {o for n in self.graph.node for o in n.output}
        return next(name for i in range(10**6) if (name := f"{stem}_{i}") not in taken)

    def maker(self, name: str) -> onnx.NodeProto | None:
        return next((node for node in self.graph.node if name in node.output), None)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def is_output(self, name: str) -> bool:
        return any(each.name == name for each in self.graph.output)

    def nodes(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type in kinds]

    def only(self, *kinds: str) -> onnx.NodeProto:
        found = self.nodes(*kinds)
        if not found:
            raise Unfit(f"no {'/'.join(kinds)}")
        return found[0]

    def bypass(self, node: onnx.NodeProto, index: int = 0) -> None:
        """Take a node away; who read its output reads its input."""
        source, target = node.input[index], node.output[0]
        self.graph.node.remove(node)
        if not self.is_output(target):
            self.redirect(target, source)
            return
        maker = self.maker(source)
        if maker is None or self.readers(source) or self.is_output(source):
            self.graph.node.append(helper.make_node("Identity", [source], [target]))
            return
        maker.output[list(maker.output).index(source)] = target

    def redirect(self, old: str, new: str) -> None:
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def insert(self, before: onnx.NodeProto, node: onnx.NodeProto) -> None:
        self.graph.node.insert(list(self.graph.node).index(before), node)

    def clean(self) -> onnx.ModelProto:
        """The model without what nobody reads, its recorded types gone (they may have changed)."""
        del self.graph.value_info[:]
        while True:
            used = {o.name for o in self.graph.output} | set(names_read(self.graph))
            dead = [n for n in self.graph.node if not any(o in used for o in n.output)]
            if not dead:
                break
            for node in dead:
                self.graph.node.remove(node)
        for stored in [each for each in self.graph.initializer if each.name not in used]:
            self.graph.initializer.remove(stored)
        return self.model


def names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """All names that a graph's nodes read, those of inner graphs too."""
    for node in graph.node:
        yield from node.input
        for each in node.attribute:
            if each.type == onnx.AttributeProto.GRAPH:
                yield from names_read(each.g)
                yield from (o.name for o in each.g.output)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def drop_attribute(node: onnx.NodeProto, name: str) -> None:
    for each in [each for each in node.attribute if each.name == name]:
        node.attribute.remove(each)


@dataclass(frozen=True)
class Layer:
    """A linear operator and the batch norm behind it, in float64. `axis` is that of the output channels in `weight`,
    which for a transposed convolution is counted in `groups` blocks of the first axis."""

    kind: str
    weight: Array
    bias: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    eps: float
    groups: int
    axis: int

    @property
    def scale(self) -> Array:
        return self.gamma / np.sqrt(self.var + self.eps)

    def scaled(self, scale: Array) -> Array:
        if self.kind == "ConvTranspose":
            blocks = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
            factors = scale.reshape(self.groups, 1, -1, *[1] * (self.weight.ndim - 2))
            return (blocks * factors).reshape(self.weight.shape)
        shape = [1] * self.weight.ndim
        shape[self.axis] = -1
        return self.weight * scale.reshape(shape)

    def folded(self) -> tuple[Array, Array]:
        return self.scaled(self.scale), (self.bias - self.mean) * self.scale + self.beta


Formula = Callable[[Layer], tuple[Array, Array]]


def sites(surgery: Surgery) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """The linear operators with a batch norm right behind, which nobody else reads."""
    found = []
    for norm in surgery.nodes("BatchNormalization"):
        source = surgery.maker(norm.input[0])
        if (
            source is None
            or source.op_type not in ("Conv", "ConvTranspose", "Gemm")
            or attribute(norm, "training_mode")
        ):
            continue
        if len(surgery.readers(norm.input[0])) != 1 or surgery.is_output(norm.input[0]):
            continue
        if surgery.array(source.input[1]) is None:
            continue
        if attribute(source, "alpha", 1.0) != 1.0 or attribute(source, "beta", 1.0) != 1.0:
            continue
        found.append((source, norm))
    return found


def layer(surgery: Surgery, source: onnx.NodeProto, norm: onnx.NodeProto) -> Layer:
    weight = surgery.array(source.input[1])
    assert weight is not None
    gamma, beta, mean, var = (np.asarray(surgery.array(name), dtype=np.float64) for name in norm.input[1:5])
    stored = surgery.array(source.input[2]) if len(source.input) > 2 and source.input[2] else np.zeros(1)
    if stored is None:
        raise Unfit("its bias is computed")
    axis = 0 if source.op_type != "Gemm" or attribute(source, "transB", 0) else 1
    return Layer(
        kind=source.op_type,
        weight=weight.astype(np.float64),
        bias=np.broadcast_to(stored.astype(np.float64).reshape(-1), gamma.shape),
        gamma=gamma,
        beta=beta,
        mean=mean,
        var=var,
        eps=float(np.float32(attribute(norm, "epsilon", 1e-5))),
        groups=attribute(source, "group", 1),
        axis=axis,
    )


def fold(model: onnx.ModelProto, formula: Formula | None = None, at: int = 0) -> onnx.ModelProto:
    """All direct neighbours folded; site `at` by `formula`, the others correctly."""
    surgery = Surgery(model)
    found = sites(surgery)
    if not found:
        raise Unfit("nothing to fold")
    for i, (source, norm) in enumerate(found):
        parts = layer(surgery, source, norm)
        weight, bias = formula(parts) if formula and i == at % len(found) else parts.folded()
        replace(surgery, source, norm, weight, bias)
    return surgery.clean()


def replace(surgery: Surgery, source: onnx.NodeProto, norm: onnx.NodeProto, weight: Array, bias: Array) -> None:
    """Give the linear operator new numbers and the name of the batch norm's output."""
    kind = surgery.array(source.input[1]).dtype  # type: ignore[union-attr]
    with np.errstate(over="ignore"):
        source.input[1] = surgery.put(surgery.fresh("folded_weight"), weight.astype(kind))
        name = surgery.put(surgery.fresh("folded_bias"), bias.astype(kind))
    if len(source.input) > 2:
        source.input[2] = name
    else:
        source.input.append(name)
    source.output[0] = norm.output[0]
    surgery.graph.node.remove(norm)

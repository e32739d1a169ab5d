"""A model is more than its graph: nodes live in the bodies of If, Loop and Scan and in model-local functions too.

What every other module of this package asks about nodes and values, wherever they live.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
STANDARD_DOMAINS = ("", "ai.onnx")
SHAPE_READERS = frozenset({"Shape", "Size"})
# Asked for millions of attributes; a member of an enumeration is looked up each time that it is named.
GRAPH, GRAPHS, TENSOR = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the model: the graph with its nested bodies in topological order, then each function."""
    yield from _nodes(model.graph)
    for function in model.functions.values():
        yield from _nodes(function)


def _nodes(body: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """As onnx_ir's `all_nodes`, in a third of its time, which is felt where a graph is walked again and again."""
    for node in body:
        yield node
        for inner in bodies(node):
            yield from _nodes(inner)


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model, the bodies of functions and of control flow too."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        yield root
        for node in _nodes(root):
            yield from bodies(node)


def function_graphs(model: ir.Model) -> set[ir.Graph]:
    """The bodies of the functions, which can hold no initializers."""
    return {function.graph for function in model.functions.values()}


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of the default domain."""
    return node.op_type in op_types and node.domain in STANDARD_DOMAINS


def opset(model: ir.Model) -> dict[ir.Node, int]:
    """The version of the default domain for the nodes of functions; every other node has that of the model."""
    return {
        node: _version(function.opset_imports) for function in model.functions.values() for node in _nodes(function)
    }


def model_opset(model: ir.Model) -> int:
    """The version of the default domain that the graph imports, 0 where it imports none."""
    return _version(model.opset_imports)


def _version(imports: dict[str, int]) -> int:
    return max((imports.get(domain, 0) for domain in STANDARD_DOMAINS), default=0)


def content_uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Who reads what the value holds, not only its shape or its type."""
    return [(use.node, use.idx) for use in value.uses() if not _asks_about(use.node, use.idx)]


def _asks_about(node: ir.Node, index: int) -> bool:
    return is_standard(node, *SHAPE_READERS) or (is_standard(node, "CastLike") and index == 1)


def is_dead(node: ir.Node) -> bool:
    """Whether nothing reads any output of the node."""
    return not any(output.uses() or output.is_graph_output() for output in node.outputs)


def site_names(model: ir.Model) -> dict[ir.Node, str]:
    """A unique name for every node: its own, or its first output's where it has none or shares it."""
    every = list(nodes(model))
    count = Counter(node.name for node in every)
    taken = {name for name, number in count.items() if name and number == 1}
    names: dict[ir.Node, str] = {}
    for node in every:
        if node.name and count[node.name] == 1:
            names[node] = node.name
        else:
            first = next((output.name for output in node.outputs if output.name), node.op_type)
            names[node] = unused(first, taken)
    return names


def keep_names(model: ir.Model, names: Mapping[ir.Node, str]) -> None:
    """Name each node as `site_names` once called it where it would be called otherwise now: an output has another name,
    or a namesake is gone."""
    for node, name in site_names(model).items():
        if names.get(node, name) != name:
            node.name = names[node]


def unused(base: str, taken: set[str]) -> str:
    """`base`, with a number behind it if it is taken; taken from now on."""
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def all_names(model: ir.Model) -> set[str]:
    """Every name of the model, of values and of nodes, in every scope."""
    names = {node.name for node in nodes(model)}
    names |= {value.name for node in nodes(model) for value in node.outputs}
    for graph in graphs(model):
        names |= {value.name for value in graph.inputs} | set(graph.initializers)
    return {name for name in names if name}


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that the node holds, one level down."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.data.values():  # a plain dict, which is walked in a quarter of the time
        if attribute.type is GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif attribute.type is GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found


def sizes(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a stored tensor. One that is still a proto would make a Shape of it each time that it is asked."""
    if isinstance(tensor, ir.TensorProtoTensor):
        return tuple(tensor.raw.dims)
    return tuple(int(size) for size in tensor.shape.numpy())


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of the file: initializers and those that nodes hold."""
    for graph in graphs(model):
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    yield from attribute_tensors(model)


def attribute_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The tensors that nodes hold."""
    for node in nodes(model):
        for attribute in node.attributes.data.values():
            if attribute.type is TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()

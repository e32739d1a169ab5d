"""ONNX files that reach for other files, lie about their sizes, or are larger than they look."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from attacks.attack import INSIDE, OUTSIDE, SECRET, Attack
from bnfold.frontends.onnx.wire import begins

NUMBERS = np.arange(64, dtype=np.float32)
IMPORTS = [helper.make_opsetid("", 17)]


def plain(*nodes: NodeProto, stored: tuple[TensorProto, ...] = ()) -> ModelProto:
    """A model with one input that it passes on, and whatever nodes besides."""
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    last = helper.make_node("Identity", ["x"], ["y"], name="last")
    graph = helper.make_graph([*nodes, last], "graph", [data], [result], [*stored])
    return helper.make_model(graph, opset_imports=IMPORTS, ir_version=8)


def elsewhere(location: str, name: str = "w", **entries: str) -> TensorProto:
    """A tensor that says that its numbers lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=NUMBERS.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def written(folder: Path, model: ModelProto | bytes) -> Path:
    path = folder / INSIDE / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def as_initializer(tensor: TensorProto) -> ModelProto:
    used = helper.make_node("Add", ["x", tensor.name], ["z"], name="add")
    return plain(used, stored=(tensor,))


def as_attribute(tensor: TensorProto) -> ModelProto:
    return plain(helper.make_node("Constant", [], ["c"], value=tensor))


def as_default(tensor: TensorProto) -> ModelProto:
    """What a function takes for an attribute that it is not given."""
    model = plain()
    function = model.functions.add(name="local", domain="local", input=["a"], output=["b"], opset_import=IMPORTS)
    function.node.append(helper.make_node("Identity", ["a"], ["b"]))
    function.attribute_proto.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def calling(folder: Path, *, levels: int, times: int) -> Path:
    """Functions each of which calls the next so many times."""
    model = plain(helper.make_node("level0", ["x"], ["z"], domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    for level in range(levels):
        function = model.functions.add(name=f"level{level}", domain="local", input=["a"], output=[f"v{times}"])
        function.opset_import.extend(model.opset_import)
        names = ["a", *(f"v{number + 1}" for number in range(times))]
        for one, other in itertools.pairwise(names):
            last = level + 1 == levels
            kind = ("Relu", "") if last else (f"level{level + 1}", "local")
            function.node.append(helper.make_node(kind[0], [one], [other], domain=kind[1]))
    return written(folder, model)


def as_list(tensor: TensorProto) -> ModelProto:
    node = helper.make_node("Anything", ["x"], ["c"], domain="custom")
    node.attribute.append(AttributeProto(name="values", type=AttributeProto.TENSORS, tensors=[tensor]))
    model = plain(node)
    model.opset_import.append(helper.make_opsetid("custom", 1))
    return model


def body(tensor: TensorProto) -> GraphProto:
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [64])
    return helper.make_graph([helper.make_node("Identity", [tensor.name], ["r"])], "body", [], [result], [tensor])


def in_subgraph(tensor: TensorProto) -> ModelProto:
    truth = helper.make_tensor("truth", TensorProto.BOOL, [], [True])
    return plain(
        helper.make_node("If", ["truth"], ["c"], then_branch=body(tensor), else_branch=body(tensor)), stored=(truth,)
    )


def in_function(tensor: TensorProto) -> ModelProto:
    made = helper.make_node("Constant", [], ["c"], value=tensor)
    function = helper.make_function("own", "Make", [], ["c"], [made], IMPORTS)
    model = plain(helper.make_node("Make", [], ["c"], domain="own"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    indices = helper.make_tensor("", TensorProto.INT64, [64], range(64))
    return onnx.SparseTensorProto(values=tensor, indices=indices, dims=[1, 64])


def in_sparse(tensor: TensorProto) -> ModelProto:
    model = plain()
    model.graph.sparse_initializer.append(sparse(tensor))
    return model


def in_sparse_attribute(tensor: TensorProto) -> ModelProto:
    node = helper.make_node("Constant", [], ["c"])
    held = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse(tensor))
    node.attribute.append(held)
    return plain(node)


def in_training(tensor: TensorProto) -> ModelProto:
    model = plain()
    info = model.training_info.add()
    info.algorithm.CopyFrom(body(tensor))
    return model


PLACES: dict[str, Callable[[TensorProto], ModelProto]] = {
    "an initializer": as_initializer,
    "an attribute": as_attribute,
    "a list of tensors": as_list,
    "a subgraph": in_subgraph,
    "a function": in_function,
    "a default of a function": as_default,
    "a sparse initializer": in_sparse,
    "a sparse attribute": in_sparse_attribute,
    "training": in_training,
}
NAMES: dict[str, tuple[str, str]] = {
    "the folder above": (f"../{OUTSIDE}/{SECRET}", "outside its folder"),
    "the folder above by a detour": (f"sub/../../{OUTSIDE}/{SECRET}", "outside its folder"),
    "an absolute name": ("/etc/hostname", "outside its folder"),
    "an absolute name of Windows": ("C:\\secret.bin", "outside its folder"),
    "the folder above on Windows": (f"..\\{OUTSIDE}\\{SECRET}", "outside its folder"),
    "a share of Windows": ("\\\\host\\share\\secret.bin", "outside its folder"),
    "no name": ("", "no file name"),
    "a name with an escape": ("\x1b[31mweights.bin", "no file name"),
    "a name with a zero": ("weights.bin\0", "no file name"),
    "a name that turns around": ("weights\u202enib.bin", "no file name"),
    "a name without end": ("w" * 5000, "no file name"),
    "a file that is not there": ("missing.bin", "not there"),
    "a folder": (".", "no regular file"),
}


def named(place: Callable[[TensorProto], ModelProto], location: str, folder: Path) -> Path:
    return written(folder, place(elsewhere(location)))


def linked(folder: Path, make: Callable[[Path, Path], None], location: str = "weights.bin") -> Path:
    """The data file is a link, made by `make(secret, link)`."""
    make(folder / OUTSIDE / SECRET, folder / INSIDE / "weights.bin")
    return named(as_initializer, location, folder)


def symbolic(secret: Path, link: Path) -> None:
    link.symlink_to(secret)


def symbolic_folder(secret: Path, link: Path) -> None:
    (link.parent / "sub").symlink_to(secret.parent, target_is_directory=True)


def hard(secret: Path, link: Path) -> None:
    os.link(secret, link)


def fifo(secret: Path, link: Path) -> None:
    os.mkfifo(link)


def device(secret: Path, link: Path) -> None:
    link.symlink_to("/dev/zero")


LINKS: dict[str, tuple[Callable[[Path, Path], None], str, str]] = {
    "a symbolic link": (symbolic, "weights.bin", "a link that leads elsewhere"),
    "a symbolic link of a folder": (symbolic_folder, f"sub/{SECRET}", "a link that leads elsewhere"),
    "a hard link": (hard, "weights.bin", "a link that leads elsewhere"),
    "a pipe": (fifo, "weights.bin", "no regular file"),
    "a device": (device, "weights.bin", "no regular file"),
}


def sized(folder: Path, dims: tuple[int, ...] = NUMBERS.shape, **entries: str) -> Path:
    """The data file is there and honest; what the tensor says of it is not."""
    (folder / INSIDE / "weights.bin").write_bytes(NUMBERS.tobytes())
    tensor = elsewhere("weights.bin", **entries)
    tensor.dims[:] = dims
    return written(folder, as_initializer(tensor))


SIZES: dict[str, Callable[[Path], Path]] = {
    "an offset behind the end": partial(sized, offset="4"),
    "an offset before the beginning": partial(sized, offset="-4"),
    "an offset that is no number": partial(sized, offset="0x10"),
    "an offset without end": partial(sized, offset="9" * 400),
    "a length behind the end": partial(sized, length="257"),
    "more numbers than bytes": partial(sized, dims=(1 << 20,)),
}


def short(folder: Path, dims: tuple[int, ...] = (1 << 20,), data: bytes = b"\0" * 8) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=data)
    return written(folder, as_initializer(tensor))


def nested(depth: int, folder: Path) -> Path:
    """Ifs in Ifs with one branch each, made as bytes: libraries do not build what is deeper than they read."""
    truth = helper.make_tensor("truth", TensorProto.BOOL, [], [True])
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", ["x"], ["r"]).SerializeToString()
    rest = helper.make_graph([], "body", [], [result]).SerializeToString()
    branch = AttributeProto(name="then_branch", type=AttributeProto.GRAPH).SerializeToString()
    for _ in range(depth):
        graph = field(1, node) + rest
        node = helper.make_node("If", ["truth"], ["r"]).SerializeToString() + field(5, branch + field(6, graph))
    return with_nodes(folder, field(1, node), truth)


def with_nodes(folder: Path, nodes: bytes, *stored: TensorProto) -> Path:
    """A model with serialised nodes in front of its own."""
    model = plain(stored=stored)
    graph = nodes + model.graph.SerializeToString()
    model.ClearField("graph")
    return written(folder, model.SerializeToString() + field(7, graph))


def field(number: int, content: bytes) -> bytes:
    return begins(number, len(content)) + content


def expanding(folder: Path) -> Path:
    """A small file whose constants would be 4 TB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1 << 20, 1 << 20, 1])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    made = helper.make_node("Expand", ["one", "shape"], ["c"], name="made")
    return written(folder, plain(made, stored=(shape, one)))


def long_name(folder: Path) -> Path:
    return written(folder, plain(helper.make_node("Identity", ["x"], ["n" * 100_000], name="long")))


def speaking(folder: Path) -> Path:
    """A model that folds and whose names would write to the terminal."""
    model = onnx.ModelProto.FromString(files("bnfold").joinpath("data", "demo.onnx").read_bytes())
    for number, node in enumerate(model.graph.node):
        del node.metadata_props[:]  # the names of modules
        node.name = f"\x1b]0;owned\x07\x1b[31m\u202e{number}\r\nverdict: proved"
    return written(folder, model)


def cyclic(folder: Path) -> Path:
    one = helper.make_node("Add", ["x", "b"], ["a"], name="one")
    return written(folder, plain(one, helper.make_node("Relu", ["a"], ["b"], name="two")))


def cut(folder: Path) -> Path:
    data = files("bnfold").joinpath("data", "demo.onnx").read_bytes()
    return written(folder, data[: len(data) // 2])


def many(folder: Path) -> Path:
    """More nodes than the limit, in 15 MB."""
    return with_nodes(folder, field(1, helper.make_node("Relu", ["x"], ["v"]).SerializeToString()) * 1_000_001)


ATTACKS = (
    *(
        Attack(f"{name}, from {where}", partial(named, place, location), "external-data", says)
        for where, place in PLACES.items()
        for name, (location, says) in NAMES.items()
        if name == "the folder above" or where == "an initializer"
    ),
    *(
        Attack(f"{name} out of the folder", partial(linked, make=make, location=location), "external-data", says)
        for name, (make, location, says) in LINKS.items()
    ),
    *(Attack(name, build, "external-data", "truncated") for name, build in SIZES.items()),
    Attack("a shape that overflows", partial(sized, dims=(1 << 40, 1 << 40)), "limit", "its tensors have"),
    Attack("fewer numbers inside than the shape says", short, "invalid-model", "too little or too much data"),
    Attack("a shape inside that overflows", partial(short, dims=(1 << 40, 1 << 40)), "limit", "its tensors have"),
    Attack("a shape below zero", partial(short, dims=(-2,)), "invalid-model", "a size below zero"),
    Attack("subgraphs nested 20 deep", partial(nested, 20), "limit", "nested more than 16 deep"),
    Attack("subgraphs nested 400 deep", partial(nested, 400), "not-onnx"),
    Attack("a name of 100,000 characters", long_name, "limit", "characters"),
    Attack("functions that make 2^40 nodes", partial(calling, levels=40, times=2), "limit", "call each other so often"),
    Attack("functions that call 500 deep", partial(calling, levels=500, times=1), "limit", "call each other more than"),
    Attack("a million nodes", many, "limit", "more than 1,000,000"),
    Attack("a cycle", cyclic, "invalid-model"),
    Attack("half a file", cut, "truncated"),
    Attack("a constant of 4 TB", expanding, None),
    Attack("names that write to the terminal", speaking, None),
)

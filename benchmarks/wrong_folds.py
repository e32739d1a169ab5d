"""Folds that other tools get wrong, and what `bnfold check` says of them.

    python benchmarks/wrong_folds.py                              a minute
    python benchmarks/wrong_folds.py --doc docs/wrong_folds.md    the page of the documentation

Small models with a batch norm, or an affine that looks like one, of which the obvious fold is wrong. Each tool gets
each model at its defaults (`peers.py`); `bnfold.check(original, result)` gets the two models and nothing else. Beside
it: the largest difference of the results in onnxruntime, which is what a user would see. What is needed is said in
`zoo.py`.
Exit code 1 if the check lets a difference pass that is larger than `SEEN`, or calls a result different that is not.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from zoo import HERE, Failed, process

import bnfold
from bnfold.runtime import session

TOOLS = ("bnfold", "onnxscript", "onnxsim", "onnxslim", "onnxoptimizer", "onnxruntime")
FLOAT = TensorProto.FLOAT
SEEN = 1e-2
"""A difference, relative to the largest value, that no rounding of float16 explains in models of two operators."""


def built(nodes: list[onnx.NodeProto], stored: dict[str, Any], shape: list[int], dtype: int = FLOAT) -> onnx.ModelProto:
    """A model from `x` of this shape to `y`, of which the checker and shape inference know every size."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    ports = [helper.make_tensor_value_info(name, dtype, sizes) for name, sizes in (("x", shape), ("y", None))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return sized(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def sized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the sizes of its outputs, which some tools demand."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for port, known in zip(model.graph.output, inferred.graph.output, strict=True):
        port.CopyFrom(known)
    onnx.checker.check_model(model, full_check=True)
    return model


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def conv_and_norm(**attributes: Any) -> onnx.ModelProto:
    stored = {"w": normal(0, 3, 3, 3, 3), "scale": np.float32([1, 2, 0.5]), "bias": normal(1, 3)}
    stored |= {"mean": normal(2, 3), "var": np.float32([1, 4, 0.25])}
    outputs = ["y", "running_mean", "running_var"] if attributes.get("training_mode") else ["y"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], outputs, "norm", **attributes),
    ]
    return built(nodes, stored, [2, 3, 6, 6])


def overflow() -> onnx.ModelProto:
    """float16: a weight of 3 behind a factor γ/√(σ²+ε) of 31623 is no float16 any more, though every result is one."""
    dtype = np.float16
    stored = {
        "w": np.full((2, 3, 1, 1), 1, dtype),
        "scale": np.array([100, 1], dtype),
        "bias": normal(1, 2, dtype=dtype),
    }
    stored["w"][0] = np.array([3, 0, 0], dtype).reshape(3, 1, 1)
    stored |= {"mean": np.zeros(2, dtype), "var": np.array([1e-5, 1], dtype)}
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], "small", axis=3),
        helper.make_node("Conv", ["s", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["y"], "norm", epsilon=1e-7),
    ]
    return built(nodes, stored, [2, 3, 4, 64], TensorProto.FLOAT16)


def training() -> onnx.ModelProto:
    """`training_mode=1`: the statistics are those of the batch, whatever is stored."""
    return conv_and_norm(training_mode=1)


def along_height() -> onnx.ModelProto:
    """A constant of shape [1, 1, H, 1] with H equal to the number of channels: it scales rows, not channels."""
    stored = {"w": normal(0, 6, 3, 3, 3), "b": normal(1, 6), "rows": normal(2, 1, 1, 6, 1) + 2}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "rows"], ["y"], "rows_times"),
    ]
    return built(nodes, stored, [2, 3, 6, 6])


def along_width() -> onnx.ModelProto:
    """A constant of shape [W] added behind a convolution, with W equal to the number of channels."""
    stored = {"w": normal(0, 6, 3, 3, 3), "columns": normal(2, 6)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "columns"], ["y"], "columns_plus"),
    ]
    return built(nodes, stored, [2, 3, 6, 6])


def also_an_output() -> onnx.ModelProto:
    """The convolution's result is a second output of the model, so its weights must not change."""
    model = conv_and_norm()
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    return sized(model)


def shared_weight() -> onnx.ModelProto:
    """One weight, two convolutions on different inputs of different sizes, a batch norm behind one of them."""
    model = conv_and_norm()
    model.graph.node.extend(
        [
            helper.make_node("MaxPool", ["x"], ["p"], "pool", kernel_shape=[2, 2]),
            helper.make_node("Conv", ["p", "w"], ["z"], "other", pads=[1, 1, 1, 1]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    return sized(model)


def matmul_then_transpose() -> onnx.ModelProto:
    """A product, a transposition, a batch norm: its channels are the rows of the product, and the sizes coincide."""
    stored = {"w": normal(0, 6, 6), "scale": normal(1, 6) + 3, "bias": normal(2, 6), "mean": normal(3, 6)}
    stored["var"] = np.abs(normal(4, 6)) + 0.5
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("Transpose", ["m"], ["t"], "turned", perm=[1, 0]),
        helper.make_node("BatchNormalization", ["t", "scale", "bias", "mean", "var"], ["y"], "norm"),
    ]
    return built(nodes, stored, [6, 6])


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a float16 weight that overflows": overflow,
    "training_mode=1": training,
    "a constant [1, 1, H, 1]": along_height,
    "a constant [W]": along_width,
    "the convolution's result is an output": also_an_output,
    "a weight that is shared": shared_weight,
    "MatMul, Transpose, batch norm": matmul_then_transpose,
}


def outputs(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    run = session(model.SerializeToString(), optimise=False)
    return [value.astype(np.float64) for value in run(feeds).values()]


def difference(original: onnx.ModelProto, result: onnx.ModelProto) -> float | str:
    """The largest difference on one normal input, relative to the largest value; in words where one does not run."""
    port = original.graph.input[0].type.tensor_type
    shape = [size.dim_value for size in port.shape.dim]
    feeds = {"x": normal(9, *shape, dtype=helper.tensor_dtype_to_np_dtype(port.elem_type))}
    before = outputs(original, feeds)
    assert all(np.isfinite(value).all() for value in before), "what the original gives is a number"
    try:
        after = outputs(result, feeds)
    except Exception:  # of any class: only that it does not run matters
        return "the runtime refuses the result"
    if not all(np.isfinite(value).all() for value in after):
        return "not finite"
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(after, before, strict=True))


def rows(folder: Path) -> list[list[str]]:
    found = []
    for name, build in MODELS.items():
        source, target = folder / "model.onnx", folder / "result.onnx"
        onnx.save(build(), source)
        for tool in TOOLS:
            target.unlink(missing_ok=True)
            try:
                process(HERE / "peers.py", "run", tool, source, target)
                original, result = onnx.load(source), onnx.load(target)
            except Failed as failure:
                found.append([name, tool, "", f"the tool fails: {failure}"[:120], "", ""])
                continue
            norms = sum(node.op_type == "BatchNormalization" for node in result.graph.node)
            gap = difference(original, result)
            said = bnfold.check(source, target)
            figure = gap if isinstance(gap, str) else f"{gap:.1e}"
            found.append([name, tool, f"{norms} of {len(result.graph.node)}", figure, str(said.verdict), said.sentence])
    return found


def missed(found: list[list[str]]) -> list[str]:
    """Where the check and the runtime do not say the same."""
    lines = []
    for name, tool, _, gap, verdict, sentence in found:
        differs = gap in ("not finite", "the runtime refuses the result") or (gap[:1].isdigit() and float(gap) > SEEN)
        if verdict and (verdict == "failed") != differs:
            lines.append(f"{name}, {tool}: difference {gap}, but {sentence}")
    return lines


def cells(row: list[str]) -> list[str]:
    """A row of the page: of what passes only the first words are told."""
    *others, sentence = row
    short = sentence if row[4] == "failed" else sentence.partition(";")[0]
    return [cell.replace("|", "/") for cell in (*others, short)]


def document(found: list[list[str]]) -> str:
    head = ["model", "folded by", "batch norms among the nodes left", "difference", "`bnfold check`", "in words"]
    lines = [head, ["---"] * len(head), *map(cells, found)]
    kinds = "\n".join(f"- **{name}**. {(build.__doc__ or '').strip()}" for name, build in MODELS.items())
    wrong = [row for row in found if row[4] == "failed"]
    return "\n\n".join(
        [
            "# Wrong folds by other tools",
            "`python benchmarks/wrong_folds.py` makes this page. The difference is the largest one of a result in "
            "onnxruntime with its optimisations off, for one normal input, relative to the largest value.",
            f"{len(wrong)} of {len(found)} results are called not equivalent. No difference is missed, and none called "
            "where there is none." if not missed(found) else "The check is wrong here: " + "; ".join(missed(found)),
            kinds,
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--doc", type=Path, metavar="FILE", help="write the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder))
    for row in found:
        print(" | ".join(row))
    if options.doc:
        options.doc.write_text(document(found) + "\n", encoding="utf-8")
    if lines := missed(found):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()

"""Execute an ONNX model in float64, without a runtime and without torch.

    run = float64_runner(as_float64(model))
    run({"x": images})["y"]
    record(as_float64(model), stored, {"x": images}, visit)        visit(name, value) for every value on the way

`onnx.reference` walks the graph; the operators that it has wrong or slow come from `operators`. Give it a model whose
tensors and types are float64: it computes with the dtypes that it finds.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bnfold.errors import NoVerdict
from bnfold.model import Arrays, Runner
from bnfold.verify.operators import BEFORE_19, OPERATORS


class _Evaluator(ReferenceEvaluator):
    """Uses `OPERATORS` in model-local functions too, to which the base class does not pass `new_ops` on."""

    def __init__(self, proto: Any, *args: Any, **options: Any) -> None:
        standard = max(
            (entry.version for entry in getattr(proto, "opset_import", ()) if entry.domain in ("", "ai.onnx")),
            default=19,
        )
        operators = OPERATORS if standard >= 19 else (*OPERATORS, *BEFORE_19)
        super().__init__(proto, *args, **{**options, "new_ops": list(operators)})


def float64_runner(model: onnx.ModelProto | bytes, stored: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> Runner:
    """A callable on named arrays that executes the model; floating inputs become float64.

    `stored` are initializers that the model itself does not hold. They are not copied.
    Raises `NoVerdict` (code `cannot-run`), at once or when called, if an operator has no implementation, an input does
    not fit, or memory does not suffice.
    """
    try:
        evaluator = _Evaluator(onnx.load_model_from_string(model) if isinstance(model, bytes) else model)
    except Exception as error:
        raise _cannot_run(error) from error
    inits = evaluator.rt_inits_
    inits.update(stored)

    def run(feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        doubles = {name: _as_double(value) for name, value in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                results = evaluator.run(None, doubles)
        except Exception as error:
            raise _cannot_run(error) from error
        return dict(zip(evaluator.output_names, map(np.asarray, results), strict=True))

    weakref.finalize(run, inits.clear)  # the evaluator is a cycle, which may stay long after its last user
    return run


def record(
    model: onnx.ModelProto,
    stored: Mapping[str, NDArray[Any]],
    feeds: Mapping[str, NDArray[Any]],
    visit: Callable[[str, Any], None],
) -> None:
    """Execute the main graph and show every value, inputs first; each is let go after its last reader. What is `stored`
    outside the model is asked for by each operator that reads it, and not kept.

    Raises `NoVerdict` (code `cannot-run`) as `float64_runner` does, but only when it comes to what cannot run.
    """
    refusal: Exception | None = None
    try:
        try:
            evaluator = _Evaluator(model)
        except Exception as error:
            evaluator, refusal = _Evaluator(_known_beginning(model)), error
        with np.errstate(all="ignore"):
            _walk(evaluator, stored, {name: _as_double(value) for name, value in feeds.items()}, visit)
    except Exception as error:
        raise _cannot_run(error) from error
    if refusal is not None:
        raise _cannot_run(refusal) from refusal


def _known_beginning(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without outputs, and without what comes from the first operator on that has no implementation."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)

    def fails(count: int) -> bool:
        del bare.graph.node[:]
        bare.graph.node.extend(model.graph.node[:count])
        try:
            _Evaluator(bare)
        except Exception:
            return True
        return False

    known = bisect.bisect_left(range(1, len(model.graph.node) + 1), True, key=fails)
    beginning = onnx.ModelProto()
    beginning.CopyFrom(model)
    del beginning.graph.node[known:], beginning.graph.output[:]
    return beginning


def _walk(evaluator: Any, stored: Mapping[str, NDArray[Any]], feeds: Arrays, visit: Callable[[str, Any], None]) -> None:
    values: dict[str, Any] = {"": None} | evaluator.rt_inits_ | feeds
    captures = any(node.need_context() for node in evaluator.rt_nodes_)
    if captures:
        values |= stored
    last = {name: index for index, node in enumerate(evaluator.rt_nodes_) for name in node.input}
    for name, value in feeds.items():
        visit(name, value)
    for index, node in enumerate(evaluator.rt_nodes_):
        inputs = [values[name] if name in values else stored[name] for name in node.input]
        results = node.run(*inputs, context=values) if node.need_context() else node.run(*inputs)
        for name, value in zip(node.output, results, strict=False):
            values[name] = value
            visit(name, value)
        for name in () if captures else (*node.input, *node.output):
            if name and last.get(name, index) <= index:
                values.pop(name, None)


def _as_double(value: NDArray[Any]) -> NDArray[Any]:
    is_float = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    return value.astype(np.float64) if is_float else value


def _cannot_run(error: Exception) -> NoVerdict:
    """The executor's own errors are of every class, so they are told apart by nothing but where they come from."""
    cause = error.__cause__ or error
    line = (str(cause) or type(cause).__name__).strip().splitlines()[0]
    return NoVerdict(f"the float64 executor cannot run the model: {line[:200]}", code="cannot-run")

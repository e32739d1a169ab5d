"""Execute an ONNX model in float64, without a runtime and without torch.

    run = float64_runner(as_float64(model))
    run({"x": images})["y"]

`onnx.reference` walks the graph; the operators that it has wrong or slow come from `operators`. Give it a model whose
tensors and types are float64: it computes with the dtypes that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bnfold.errors import NoVerdict
from bnfold.model import Arrays, Runner
from bnfold.verify.operators import OPERATORS


class _Evaluator(ReferenceEvaluator):
    """Uses `OPERATORS` in model-local functions too, to which the base class does not pass `new_ops` on."""

    def __init__(self, proto: Any, *args: Any, **options: Any) -> None:
        super().__init__(proto, *args, **{**options, "new_ops": list(OPERATORS)})


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
    evaluator.rt_inits_.update(stored)

    def run(feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        doubles = {name: _as_double(value) for name, value in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                results = evaluator.run(None, doubles)
        except Exception as error:
            raise _cannot_run(error) from error
        return dict(zip(evaluator.output_names, map(np.asarray, results), strict=True))

    return run


def _as_double(value: NDArray[Any]) -> NDArray[Any]:
    is_float = np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"
    return value.astype(np.float64) if is_float else value


def _cannot_run(error: Exception) -> NoVerdict:
    """The executor's own errors are of every class, so they are told apart by nothing but where they come from."""
    cause = error.__cause__ or error
    line = (str(cause) or type(cause).__name__).strip().splitlines()[0]
    return NoVerdict(f"the float64 executor cannot run the model: {line[:200]}", code="cannot-run")

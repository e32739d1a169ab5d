"""onnxsim on request: its constant folding and shape clean-up, after bnfold is done."""

from __future__ import annotations

from typing import Any

from bnfold.errors import MissingDependency, Rejected


def simplify(model: Any) -> Any:
    """What onnxsim makes of an `onnx_ir.Model`. Raises `MissingDependency`, or `Rejected` where onnxsim fails."""
    try:
        import onnxsim
    except ImportError as error:
        raise MissingDependency("--simplify needs onnxsim", hint='pip install "bnfold[simplify]"') from error
    from bnfold.frontends import onnx

    try:
        simplified, _ = onnxsim.simplify(onnx.to_proto(model))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Rejected(f"onnxsim cannot simplify the model: {first}", code="simplify-failed") from error
    return onnx.from_proto(simplified)

"""onnxruntime sessions as callables on named arrays.

    run = session(Path("model.onnx"), optimise=False)
    run({"x": images})["y"]

The only importer of onnxruntime. What it cannot run is a `CannotRun` with the runtime's own first line, so that a check
can skip what it cannot do. A provider that is asked for and not used is an `EnvironmentFailure`: nothing falls back in
silence.
"""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from bnfold.errors import EnvironmentFailure, MissingDependency, NoVerdict
from bnfold.model import Arrays, Port, Signature

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""The short names of providers; any other name is taken as onnxruntime's own."""

_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Where providers compute that do not read the memory of the host, in onnxruntime's words."""

_DTYPES = {"float": "float32", "double": "float64"}
_SILENT = 4
_log = logging.getLogger(__name__)


class CannotRun(NoVerdict):
    """onnxruntime refuses the model or the input: an unknown operator, a missing kernel, a size that does not fit."""

    default_code = "cannot-run"


@dataclass(frozen=True, eq=False)
class Session:
    """A model that is ready to run. Calling it maps named arrays to named arrays; it may be called again and again.

    `provider` is the one that is used, `version` that of onnxruntime. Raises `CannotRun` when called with what does not
    fit. bfloat16 values are arrays of `ml_dtypes.bfloat16`.
    """

    signature: Signature
    provider: str
    version: str
    _raw: Any

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        names = [port.name for port in self.signature.outputs]
        try:
            if self._has_bfloat16():
                return self._run_bfloat16(names, feeds)
            values = self._raw.run(names, dict(feeds), _quiet(_onnxruntime().RunOptions()))
        except Exception as error:
            raise _cannot_run(error) from error
        return dict(zip(names, values, strict=True))

    def _has_bfloat16(self) -> bool:
        return any(port.dtype == "bfloat16" for port in (*self.signature.inputs, *self.signature.outputs))

    def prepared(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """One run on these arrays as a call without arguments, for timing.

        Where the provider computes elsewhere, the inputs are copied there once and the outputs stay there: a call
        computes, waits for the device and copies nothing. Raises `CannotRun`, as each call may.
        """
        device = _DEVICES.get(self.provider)
        return partial(self, feeds) if device is None or self._has_bfloat16() else self._bound(feeds, device)

    def _bound(self, feeds: Mapping[str, NDArray[Any]], device: str) -> Callable[[], object]:
        binding, options = self._raw.io_binding(), _quiet(_onnxruntime().RunOptions())
        try:
            for name, value in feeds.items():
                binding.bind_ortvalue_input(name, _onnxruntime().OrtValue.ortvalue_from_numpy(value, device, 0))
            for port in self.signature.outputs:
                binding.bind_output(port.name, device)
        except Exception as error:
            raise _cannot_run(error) from error

        def run() -> None:
            try:
                self._raw.run_with_iobinding(binding, options)
                binding.synchronize_outputs()
            except Exception as error:
                raise _cannot_run(error) from error

        return run

    def _run_bfloat16(self, names: list[str], feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """numpy has no bfloat16, so these values travel as the bits they are."""
        make = _onnxruntime().OrtValue
        values = {
            name: make.ortvalue_from_numpy_with_onnx_type(value.view(np.uint16), onnx.TensorProto.BFLOAT16)
            if value.dtype == ml_dtypes.bfloat16
            else make.ortvalue_from_numpy(value)
            for name, value in feeds.items()
        }
        results = self._raw.run_with_ort_values(names, values, _quiet(_onnxruntime().RunOptions()))
        return {name: _from_value(value) for name, value in zip(names, results, strict=True)}


def session(
    model: bytes | Path,
    *,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    optimise: bool = True,
    spins: bool = True,
) -> Session:
    """Load a serialised model, or a file (with its external data), into onnxruntime.

    `threads` None leaves the choice to the runtime. Without `spins` its threads stop when a run has ended, so that they
    do not take time from another session that is measured beside this one. Raises `MissingDependency` without
    onnxruntime, `EnvironmentFailure` (code `provider-missing`) if `provider` is not there or would not be used, and
    `CannotRun` if the runtime refuses the model.
    """
    ort = _onnxruntime()
    options = _options(threads, optimise)
    if not spins:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    raw = _open(model, options, provider, provider_options or {})
    ports = (tuple(_port(argument) for argument in arguments) for arguments in (raw.get_inputs(), raw.get_outputs()))
    return Session(Signature(*ports), raw.get_providers()[0], ort.__version__, raw)


def census_after_optimisation(
    model: bytes | Path, *, provider: str = "cpu", provider_options: Mapping[str, str] | None = None
) -> Counter[str]:
    """How many operators of each type are left after the runtime's own default optimisation, subgraphs included.

    Raises as `session` does; also `CannotRun` if the runtime cannot write its graph down (over 2 GB).
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / "optimised.onnx"
        options = _options(1, optimise=True)
        options.optimized_model_filepath = str(target)
        _open(model, options, provider, provider_options or {})
        return Counter(_operators(onnx.load(target, load_external_data=False).graph))


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, inputs and outputs too, as onnxruntime's own converter makes it. The given one may change.

    Raises `CannotRun` where the converter fails.
    """
    _onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every number that becomes zero or infinite
        try:
            converted: onnx.ModelProto = convert_float_to_float16(model)
        except Exception as error:
            raise CannotRun(f"onnxruntime cannot convert it to float16: {str(error)[:200]}") from error
    return converted


def available_providers() -> tuple[str, ...]:
    """The providers of the installed onnxruntime, by its own names; none if it is not installed."""
    try:
        return tuple(_onnxruntime().get_available_providers())
    except MissingDependency:
        return ()


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            "running an ONNX model needs onnxruntime, which is not installed", hint='pip install "bnfold[cpu]"'
        ) from error
    onnxruntime.set_default_logger_severity(_SILENT)
    module: ModuleType = onnxruntime
    return module


def _options(threads: int | None, optimise: bool) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return _quiet(options)


def _quiet(options: Any) -> Any:
    """The runtime prints to stderr by itself; what matters of it comes back as an exception."""
    options.log_severity_level = _SILENT
    return options


def _open(model: bytes | Path, options: Any, provider: str, provider_options: Mapping[str, str]) -> Any:
    ort = _onnxruntime()
    wanted = PROVIDERS.get(provider.lower(), provider)
    available = ort.get_available_providers()
    if wanted not in available:
        raise _provider_missing(f"provider {wanted} is not in this onnxruntime", available)
    chain: list[Any] = [(wanted, dict(provider_options))]
    if wanted != PROVIDERS["cpu"]:
        chain.append(PROVIDERS["cpu"])
    try:
        raw = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=chain)
    except Exception as error:
        raise _cannot_run(error) from error
    if (used := raw.get_providers()[0]) != wanted:
        raise _provider_missing(f"provider {wanted} could not start, and onnxruntime fell back to {used}", available)
    return raw


def _provider_missing(sentence: str, available: Iterable[str]) -> EnvironmentFailure:
    package = "pip install onnxruntime-gpu" if "CUDA" in sentence or "Tensorrt" in sentence else "--provider cpu"
    return EnvironmentFailure(f"{sentence}; available: {', '.join(available)}", code="provider-missing", hint=package)


def _cannot_run(error: Exception) -> CannotRun:
    """The runtime's exceptions have no common base; all that calling it raises means that it did not run."""
    _log.debug("onnxruntime: %s", error)
    line = (str(error) or type(error).__name__).strip().splitlines()[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = re.sub(r"\S+\.\w+:\d+ .* was false\.\s*", "", line)  # where in its source, and what was tested there
    return CannotRun(f"onnxruntime cannot run it: {line[:300].rstrip('.')}")


def _port(argument: Any) -> Port:
    found = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    dtype = _DTYPES.get(found[1], found[1]) if found else argument.type
    return Port(argument.name, dtype, tuple(argument.shape))


def _from_value(value: Any) -> NDArray[Any]:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    bits = np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), dtype=np.uint16)
    return np.asarray(bits.view(ml_dtypes.bfloat16)).reshape(value.shape())


def _operators(graph: onnx.GraphProto) -> Iterable[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _operators(inner)

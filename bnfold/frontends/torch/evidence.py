"""What a program stores, read on another path than the one that folds.

Arguments are bound by torch's own `normalize_function`; what is computed from stored tensors is run node by node in
float64. No lens is used here, so that an error in a lens shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.operator_schemas import normalize_function

from bnfold.evidence import REACH, Elementwise, Evidence, StoredAffine, StoredLinear, StoredNorm, StoredWindow
from bnfold.frontends.torch.aliasing import reads_shape_only
from bnfold.frontends.torch.casting import converted_tensor
from bnfold.frontends.torch.constants import with_dtype
from bnfold.frontends.torch.places import module_type
from bnfold.frontends.torch.program import STORED, written_names
from bnfold.frontends.torch.running import to_array

Stored = NDArray[Any]

_VIEWS = ("aten::t", "aten::permute", "aten::transpose", "aten::numpy_T", "aten::detach", "aten::alias")

_ELEMENTWISE: dict[str, tuple[Elementwise | None, Elementwise | None]] = {
    "add": ("add", "add"),
    "rsub": ("sub", "rsub"),
    **dict.fromkeys(("sub", "subtract"), ("rsub", "sub")),
    **dict.fromkeys(("mul", "multiply"), ("mul", "mul")),
    **dict.fromkeys(("div", "true_divide"), (None, "div")),
}
"""What an operator is whose first operand, or second operand, is the constant one."""


_DROPOUTS = ("dropout", "feature_dropout")
"""Those that scale up what they keep; an alpha dropout is made to keep mean and variance."""

_MEAN, _COUNTER = "running_mean", "num_batches_tracked"

_MIXING = (
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
    *("linear", "addmm", "mm", "matmul", "add"),
)
_UNMIXED = (
    *("relu", "leaky_relu", "prelu", "alias", "clone", "contiguous", "to"),
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"),
)
NOISE_PASSES = (*_MIXING, *_UNMIXED)
"""What may be between a dropout and a batch norm that it disturbs: linear layers and ReLUs (arXiv 1801.05134)."""


def evidence(program: ExportedProgram) -> Evidence:
    """The constant parameters of every batch norm, linear and elementwise operator, by node name."""
    values = _Values(program)
    found = Evidence({}, {}, {}, _unread(program.graph))
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name, arguments = _bound(node)
        if norm := _norm(name, arguments, values):
            source = arguments.get("input")
            dropout, unmixed = _dropout(source, values)
            found.norms[node.name] = replace(
                norm,
                dropout=dropout,
                unmixed=unmixed,
                rectified=_rectified(node),
                reads=source.name if isinstance(source, fx.Node) else "",
            )
        elif "batch_norm" in name:
            found.running[node.name] = arguments.get("running_mean") is not None
        elif linear := _linear(name, arguments, values):
            found.linears[node.name] = linear
        elif affine := _affine(name, arguments, values):
            found.affines[node.name] = affine
            _complete(node, affine, found)
    return found


def _bound(node: fx.Node) -> tuple[str, dict[str, Any]]:
    pair = normalize_function(node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True)  # type: ignore[arg-type]
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    return name, {} if pair is None else dict(pair.kwargs)


def _norm(name: str, arguments: dict[str, Any], values: _Values) -> StoredNorm | None:
    if "batch_norm" not in name or arguments.get("training", False) is not False:
        return None
    mean, variance = values.get(arguments.get("running_mean")), values.get(arguments.get("running_var"))
    if mean is None or variance is None:
        return None
    gamma, beta = values.get(arguments.get("weight")), values.get(arguments.get("bias"))
    return StoredNorm(
        gamma=np.ones_like(to_array(mean)) if gamma is None else to_array(gamma),
        beta=np.zeros_like(to_array(mean)) if beta is None else to_array(beta),
        mean=to_array(mean),
        variance=to_array(variance),
        epsilon=arguments["epsilon"] if "epsilon" in arguments else arguments["eps"],
        kept=_kept(arguments),
        batches=values.count_beside(arguments.get("running_mean")),
    )


def _kept(arguments: dict[str, Any]) -> float | None:
    """torch's momentum is the part of the running statistics that a step replaces."""
    momentum = arguments.get("momentum", arguments.get("exponential_average_factor"))
    return 1.0 - momentum if isinstance(momentum, (int, float)) else None


def _dropout(value: Any, values: _Values) -> tuple[float, bool]:
    """The probability of the dropout in front of a value, through operators that pass its noise on, and whether all of
    them are `_UNMIXED`; 0 without one."""
    unmixed = True
    for _ in range(REACH):
        if not isinstance(value, fx.Node) or not isinstance(value.target, torch._ops.OpOverload):
            break
        name = value.target._schema.name.removeprefix("aten::").removesuffix("_")
        if name in _DROPOUTS:
            probability = _bound(value)[1].get("p")
            return (float(probability), unmixed) if isinstance(probability, (int, float)) else (0.0, False)
        data = [node for node in value.all_input_nodes if values.get(node) is None]
        value = data[0] if name in NOISE_PASSES and len(data) == 1 else None
        unmixed = unmixed and name in _UNMIXED
    return 0.0, False


def _rectified(node: fx.Node) -> bool:
    """Whether ReLUs, and nothing else, read the result of a node."""
    targets = [user.target for user in node.users]
    names = [target._schema.name for target in targets if isinstance(target, torch._ops.OpOverload)]
    return bool(targets) and len(names) == len(targets) and set(names) <= {"aten::relu", "aten::relu_"}


def _affine(name: str, arguments: dict[str, Any], values: _Values) -> StoredAffine | None:
    """An elementwise operator with one constant operand: a tensor, or a number written in the program."""
    name = name.removesuffix("_")
    if name in ("neg", "negative"):
        return StoredAffine("neg", None) if values.get(arguments.get("input")) is None else None
    if name not in _ELEMENTWISE or arguments.get("alpha", 1) != 1 or arguments.get("rounding_mode") is not None:
        return None
    constants = [_constant(arguments.get(key), values) for key in ("input", "other")]
    if (constants[0] is None) == (constants[1] is None):
        return None
    op, constant = next(pair for pair in zip(_ELEMENTWISE[name], constants, strict=True) if pair[1] is not None)
    return None if op is None else StoredAffine(op, constant)


def _complete(node: fx.Node, affine: StoredAffine, found: Evidence) -> None:
    """An addition may end a frozen batch norm, in a module that is called one, or be the bias of a matrix product."""
    if affine.op != "add" or affine.constant is None:
        return
    term = affine.constant.reshape(-1)
    for product in (each for each in node.all_input_nodes if len(each.users) == 1):
        scaling, linear = found.affines.get(product.name), found.linears.get(product.name)
        if linear is not None and linear.layout == "matmul" and linear.bias is None:
            if term.size in (1, linear.weight.shape[1]) and affine.constant.shape[-1:] in ((), (term.size,)):
                found.linears[product.name] = replace(linear, bias=term, added=node.name)
        elif scaling is not None and scaling.op == "mul" and "BatchNorm" in module_type(node):
            found.norms[node.name] = _frozen(scaling, term)
            del found.affines[product.name], found.affines[node.name]


def _frozen(scaling: StoredAffine, term: Stored) -> StoredNorm:
    """`x * scale + term`, as a batch norm of mean 0 and variance 1."""
    scale = np.zeros(0) if scaling.constant is None else scaling.constant.reshape(-1)
    channels = max(scale.size, term.size)
    gamma, beta = (np.resize(each, channels) for each in (scale, term))
    return StoredNorm(gamma, beta, np.zeros_like(gamma), np.ones_like(gamma), 0.0)


def _constant(argument: Any, values: _Values) -> Stored | None:
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return np.array(float(argument))
    tensor = values.get(argument)
    return None if tensor is None else to_array(tensor)


def _linear(name: str, arguments: dict[str, Any], values: _Values) -> StoredLinear | None:
    if name in ("linear", "addmm", "mm", "matmul"):
        keys = {"linear": ("weight", "bias"), "addmm": ("mat2", "input"), "mm": ("mat2", ""), "matmul": ("other", "")}
        layout: Literal["conv", "conv_transpose", "matmul", "linear"] = "linear" if name == "linear" else "matmul"
    elif "conv" in name and "weight" in arguments:
        keys = {name: ("weight", "bias")}
        layout = "conv_transpose" if "transpose" in name or arguments.get("transposed") else "conv"
    else:
        return None
    weight, bias = (values.get(arguments.get(key)) for key in keys[name])
    if weight is None or (name in ("linear", "addmm", "mm", "matmul") and weight.dim() != 2):
        return None
    return StoredLinear(
        layout,
        to_array(weight),
        None if bias is None else to_array(bias),
        groups=arguments.get("groups", 1),
        alpha=float(arguments.get("alpha", 1)),
        beta=float(arguments.get("beta", 1)),
        window=_window(arguments, weight.shape[2:]) if layout.startswith("conv") else None,
    )


def _window(arguments: dict[str, Any], kernel: Sequence[int]) -> StoredWindow | None:
    """What the arguments say of a window; None where they are no plain numbers."""
    names = ("stride", "padding", "dilation", "output_padding")
    defaults = dict(zip(names, (1, 0, 1, 0), strict=True))
    given = {name: arguments.get(name, defaults[name]) for name in names}
    padding = given.pop("padding")
    sizes = {name: _spread(value, len(kernel)) for name, value in given.items()}
    if padding == "same":
        border = [step * (size - 1) for step, size in zip(sizes["dilation"], kernel, strict=True)]
        before, after = tuple(size // 2 for size in border), tuple(size - size // 2 for size in border)
    else:
        before = after = _spread(0 if padding == "valid" else padding, len(kernel))
    every = (*sizes["stride"], *sizes["dilation"], *before, *sizes["output_padding"])
    if not all(isinstance(size, int) for size in every):
        return None
    return StoredWindow(sizes["stride"], sizes["dilation"], before, after, sizes["output_padding"])


def _spread(value: Any, axes: int) -> tuple[Any, ...]:
    """One number per spatial axis."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * axes if len(values) == 1 else values


class _Values:
    """The values of nodes that depend on stored tensors alone; None for all others."""

    def __init__(self, program: ExportedProgram) -> None:
        self._stored = stored = {**program.constants, **program.state_dict}
        placeholders = program.graph.find_nodes(op="placeholder")
        specs = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
        self._names = {node: spec.target for node, spec in specs.items() if spec.target is not None}
        held = {node: stored[spec.target].detach() for node, spec in specs.items() if spec.kind in STORED}
        dense = {node: tensor for node, tensor in held.items() if tensor.layout is torch.strided}
        written, names = set(_written(program.graph)), written_names(program)
        changed = {dense[node].data_ptr() for node in dense if node in written or specs[node].target in names}
        self._known: dict[fx.Node, Any] = dict.fromkeys(placeholders) | {
            node: tensor for node, tensor in dense.items() if tensor.data_ptr() not in changed
        }
        for node in program.graph.nodes:  # first to last, so that no later question goes deep
            if any(self._known.get(each, each) is None for each in node.all_input_nodes):
                self._known[node] = None

    def count_beside(self, mean: Any) -> int | None:
        """The number of training steps that a module keeps beside this running mean; None where it keeps none."""
        name = self._names.get(mean, "")
        counter = self._stored.get(f"{name.removesuffix(_MEAN)}{_COUNTER}") if name.endswith(_MEAN) else None
        if not isinstance(counter, Tensor) or counter.dtype != torch.int64 or counter.numel() != 1:
            return None
        return int(counter)

    def get(self, argument: Any) -> Tensor | None:
        value = self._value(argument) if isinstance(argument, fx.Node) else None
        return value if isinstance(value, Tensor) else None

    def _value(self, node: fx.Node) -> Any:
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: fx.Node) -> Any:
        pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        if node.op != "call_function" or not (pure or node.target.__name__ == "getitem") or not node.all_input_nodes:  # type: ignore[union-attr]
            return None
        inputs = {each: self._value(each) for each in node.all_input_nodes}
        if node.target is torch.ops.aten.view.dtype or any(value is None for value in inputs.values()):
            return None
        view = pure and node.target._schema.name in _VIEWS  # type: ignore[union-attr]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: _exact(inputs[each], view))
        if not view:
            args, kwargs = with_dtype((args, kwargs), torch.float64)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _exact(value: Any, view: bool) -> Any:
    return value if view or not isinstance(value, Tensor) else converted_tensor(value, torch.float64)


def _written(graph: fx.Graph) -> Iterator[fx.Node]:
    for node in graph.nodes:
        yield from written_by(node)


def written_by(node: fx.Node) -> Iterator[fx.Node]:
    """The values that an operator writes to, the running statistics of a batch norm in training among them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    updates = given.get("training", given.get("use_input_stats", "with_update" in str(node.target))) is not False
    for argument in node.target._schema.arguments:
        statistic = argument.name in ("running_mean", "running_var")
        writes = updates if statistic else argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(value := given.get(argument.name), fx.Node):
            yield value


def _unread(graph: fx.Graph) -> frozenset[str]:
    """The nodes whose values reach neither a result nor anything that writes or checks."""
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in read or node.is_impure() or any(written_by(node)):
            read.add(node)
            if not reads_shape_only(node):
                read.update(node.all_input_nodes)
    return frozenset(node.name for node in graph.nodes if node not in read)

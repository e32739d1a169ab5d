"""Code that runs around a module: kept, made permanent, or refused, never dropped in silence.

Weight norm, spectral norm and pruning compute a weight before each call. `materialise` makes the computed weight a
parameter. All other hooks are the user's own; `foreign_hooks` names the modules that have one.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from bnfold.frontends.torch.calls import hooked
from bnfold.frontends.torch.capture import deep_copy
from bnfold.frontends.torch.constants import storage_of

M = TypeVar("M", bound=nn.Module)

_COMPUTED = (WeightNorm, SpectralNorm, prune.BasePruningMethod)

_LINEAR = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def foreign_hooks(module: nn.Module) -> tuple[str, ...]:
    """The paths of the modules with a hook that is more than the computation of a weight."""
    return tuple(name for name, part in module.named_modules() if hooked(part) and not _only_computes(part))


def is_leaf(module: nn.Module) -> bool:
    """Whether symbolic tracing keeps the module, with its hooks, as one call."""
    return fx.Tracer().is_leaf_module(module, "")


def materialise(module: nn.Module) -> None:
    """Make every computed weight of a linear operator a parameter, in place."""
    for part in list(module.modules()):
        if not isinstance(part, _LINEAR):
            continue
        for hook in list(part._forward_pre_hooks.values()):
            _remove(part, hook)
        if parametrize.is_parametrized(part):
            _settle_parametrizations(part)


def duplicate(module: M) -> M:
    """A deep copy with the hooks of the module itself, which a GraphModule forgets, and of computed weights.

    Parameters that share memory with other tensors, which torch would part, share it in the copy.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    for parameter in _sharing(module):
        with torch.no_grad():
            memo[id(parameter)] = nn.Parameter(copy.deepcopy(parameter.detach(), memo), parameter.requires_grad)
    copied = deep_copy(module, memo)
    for name in [name for name in vars(module) if name.startswith(("_forward_", "_backward_")) and "hooks" in name]:
        setattr(copied, name, _kept(getattr(module, name)))
    return copied


def _sharing(module: nn.Module) -> list[nn.Parameter]:
    """The parameters whose memory another tensor has as well."""
    plain = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    held = {id(each): each for each in (*module.parameters(), *module.buffers(), *plain) if not is_lazy(each)}.values()
    owners = Counter(map(storage_of, held))
    return [t for t in held if type(t) is nn.Parameter and storage_of(t) is not None and owners[storage_of(t)] > 1]


def _kept(hooks: OrderedDict[int, Any]) -> OrderedDict[int, Any]:
    """The hooks of a user; those that `ExportedProgram.module` sets check inputs, which its guards do as well."""
    return OrderedDict((k, h) for k, h in hooks.items() if getattr(h, "__module__", None) != "torch.export._unlift")


def _only_computes(module: nn.Module) -> bool:
    others = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    computes = all(isinstance(hook, _COMPUTED) for hook in module._forward_pre_hooks.values())
    return computes and not any(others) and "forward" not in vars(module)


def _settle_parametrizations(part: nn.Module) -> None:
    """torch's own removal deletes a property of the class, which the caller's module shares."""
    with torch.no_grad():
        values = {name: getattr(part, name).detach().clone() for name in part._modules["parametrizations"]._modules}  # type: ignore[union-attr]
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part._modules["parametrizations"]
    for name, value in values.items():
        part.register_parameter(name, nn.Parameter(value))


def _remove(part: nn.Module, hook: object) -> None:
    if isinstance(hook, WeightNorm):
        remove_weight_norm(part, hook.name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(part, hook.name)
    elif isinstance(hook, prune.BasePruningMethod):
        prune.remove(part, hook._tensor_name)  # type: ignore[no-untyped-call]

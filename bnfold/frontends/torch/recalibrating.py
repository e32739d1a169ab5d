"""Statistics from data: every batch norm gets the mean and variance of what it reads in the network as corrected.

The layers before a batch norm must be right before it can be measured, so the data is read several times. Every pass
measures all batch norms and then stores what it found. What no other batch norm feeds is right after the first pass,
what only such layers feed after the second, and so on: a pass that finds again what is stored ends it, whatever the
order of the layers. This is "precise batch norm" (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576)
with the variance of all values instead of the mean of the batches' variances.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import Rejected, UsageError
from bnfold.frontends.torch.calls import NORM_MODULES
from bnfold.frontends.torch.capture import first_line
from bnfold.frontends.torch.hooks import duplicate
from bnfold.graph import NO_STATISTICS, Reason
from bnfold.moments import DriftReport, Moments, Statistics, Untouched, drift_of

Found = dict[str, Moments]
Norms = Mapping[str, Any]
"""Batch norms by path; torch types their buffers as optional, and those here have them."""

_AGAIN = "pass a list of batches, or a DataLoader whose batches are the same each time"
_NEAR = 8  # roundings of the stored type, for batches that come in another order


def recalibrate_module(module: nn.Module, data: Iterable[Any]) -> tuple[nn.Module, DriftReport]:
    """A copy of the module with the statistics of the data, and how far the old ones stood from them.

    See `bnfold.recalibrate` for what the data is, what it costs and what is raised.
    """
    _demand_batches(data)
    scratch = duplicate(module)
    _demand_norms(scratch)
    with torch.no_grad(), _eager():
        found, passes = _settle(scratch, _tracked(scratch), data)
        result = duplicate(module)
        norms = _tracked(result)
        layers = []
        for name, moments in found.items():
            norm, new = norms[name], _rounded(norms[name], moments)
            layers.append(drift_of(name, moments.count, _stored(norm), new, norm.eps))
            _store(norm, new)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(moments.calls if norm.momentum is None else 0)
    left = tuple(_untouched(name, name in norms) for name in _norms(result) if name not in found)
    return result, DriftReport(tuple(layers), left, passes)


def _eager() -> AbstractContextManager[Any]:
    """Compiled code may not see the hooks, so it runs as Python; torch's compiler is slow to import, and only asked
    where something has imported it already."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _norms(module: nn.Module) -> Norms:
    return {name: part for name, part in module.named_modules() if isinstance(part, NORM_MODULES)}


def _tracked(module: nn.Module) -> Norms:
    """Those that store statistics and use them."""
    norms = _norms(module)
    return {name: norm for name, norm in norms.items() if not (norm.running_mean is None or norm.running_var is None)}


def _settle(module: nn.Module, norms: Norms, data: Iterable[Any]) -> tuple[Found, int]:
    """The moments that every batch norm has once all are stored, and the number of passes; the module keeps them.

    The first batch alone is read first, each batch norm corrected before its result goes on: with one batch that is
    all, with more it is near.
    """
    _read(module, norms, islice(data, 1), lambda name, moments: _correct(norms[name], moments))
    for passes in count(1):
        found = _read(module, norms, data)
        _demand_two(found)
        moved = [name for name, moments in found.items() if not _repeats(norms[name], moments)]
        if not moved:
            break
        if len(found) - len(moved) < passes - 1:
            raise _unsettled(moved[0])
        for name, moments in found.items():
            _correct(norms[name], moments)
    _demand_finite(norms, found)
    return found, passes


def _read(
    module: nn.Module,
    norms: Norms,
    data: Iterable[Any],
    visit: Callable[[str, Moments], None] = lambda name, moments: None,
) -> Found:
    """Run the module on all batches; the moments of what each batch norm reads, in the order of their first calls.

    `visit` sees the moments of all calls so far, before the batch norm computes. An empty input is none.
    """
    found: Found = {}

    def watch(name: str, values: Tensor) -> None:
        if values.dim() > 1 and values.numel():
            moments = _moments(values)
            found[name] = found[name] + moments if name in found else moments
            visit(name, found[name])

    with ExitStack() as stack:
        for name, norm in norms.items():
            stack.enter_context(norm.register_forward_pre_hook(_hook(name, watch), with_kwargs=True))
        batches = sum(_run(module, batch) for batch in data)
    if not batches:
        raise UsageError("data gives no batch when it is read", hint=_AGAIN)
    return found


def _hook(name: str, watch: Callable[[str, Tensor], None]) -> Callable[..., None]:
    return lambda norm, args, kwargs: watch(name, args[0] if args else kwargs["input"])


def _run(module: nn.Module, batch: Any) -> int:
    """Run the module on a copy of a batch, on the device of its parameters; 1, the number of batches."""
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=True), _arguments(batch))
    try:
        module(*args, **kwargs)
    except Exception as error:
        raise UsageError(
            f"the data does not fit the module: {first_line(error)}",
            hint="a batch holds what the module takes, and no labels",
        ) from error
    return 1


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    raise UsageError(f"a batch is a tensor, a tuple of arguments or a dict of named ones, not {type(batch).__name__}")


def _moments(values: Tensor) -> Moments:
    """Of one call: all axes but 1 are pooled, in float64."""
    axes = [axis for axis in range(values.dim()) if axis != 1]
    number = values.numel() // values.shape[1]
    variance, mean = (each.cpu().numpy() for each in torch.var_mean(values.double(), axes, correction=0))
    return Moments(number, 1, mean, variance * number)


def _stored(norm: Any) -> Statistics:
    return Statistics(*(each.double().cpu().numpy().copy() for each in (norm.running_mean, norm.running_var)))


def _rounded(norm: Any, moments: Moments) -> Statistics:
    """The statistics as the batch norm can store them."""
    exact = moments.statistics
    stored = zip((exact.mean, exact.variance), (norm.running_mean, norm.running_var), strict=True)
    return Statistics(*(torch.from_numpy(each).to(like.dtype).double().numpy() for each, like in stored))


def _store(norm: Any, statistics: Statistics) -> None:
    norm.running_mean.copy_(torch.from_numpy(statistics.mean))
    norm.running_var.copy_(torch.from_numpy(statistics.variance))


def _correct(norm: Any, moments: Moments) -> None:
    """Of one value there is no variance, and what is stored stays."""
    if moments.count > 1:
        _store(norm, _rounded(norm, moments))


def _repeats(norm: Any, moments: Moments) -> bool:
    """Whether these are the moments that the batch norm stores."""
    tolerance = _NEAR * torch.finfo(norm.running_var.dtype).eps
    return _rounded(norm, moments).near(_stored(norm), norm.eps, tolerance)


def _demand_norms(module: nn.Module) -> None:
    if not _norms(module):
        raise UsageError(
            "the module holds no nn.BatchNorm1d, 2d or 3d",
            hint="pass the nn.Module as it was before it was exported, scripted or folded",
        )
    for name, part in module.named_modules():
        if part.training:
            raise UsageError(f"{_named(name)} is in train mode; call model.eval() first", hint="model.eval()")


def _demand_batches(data: Any) -> None:
    if isinstance(data, Tensor):
        raise UsageError("data is an iterable of batches, not one tensor", hint="write [tensor]")
    if isinstance(data, str | bytes | Mapping) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise UsageError(f"data is an iterable of batches, not {type(data).__name__}", hint="write [batch]")
    if hasattr(data, "__next__"):
        raise UsageError("data is read several times, and an iterator gives its batches only once", hint=_AGAIN)


def _demand_two(found: Found) -> None:
    for name, moments in found.items():
        if moments.count < 2:
            raise UsageError(
                f"{_named(name)} reads one value per channel in all of the data, which has no variance",
                code="too-few-values",
                hint="pass more data",
            )


def _demand_finite(norms: Norms, found: Found) -> None:
    for name, moments in found.items():
        if not _rounded(norms[name], moments).finite:
            raise Rejected(
                f"what {_named(name)} reads is not finite, or its moments are too large to be stored",
                code="non-finite",
                hint="look for NaN in the data, and for infinity in the layers before it",
            )


def _unsettled(name: str) -> Rejected:
    return Rejected(
        f"what {_named(name)} reads changes from pass to pass: the data does, or the layer feeds itself",
        code="unsettled",
        hint=_AGAIN,
    )


def _untouched(name: str, tracked: bool) -> Untouched:
    if tracked:
        return Untouched(name, "never-called", "no batch of the data reaches it")
    return Untouched(name, Reason.BATCH_STATISTICS.code, NO_STATISTICS)


def _named(name: str) -> str:
    return repr(name) if name else "the module"

"""Fold a module: through its exported program, or a GraphModule that the caller traced, keeping its submodules.

The caller's module is never changed, and the result owns its tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from bnfold.errors import Rejected, UsageError
from bnfold.folding import FoldOptions, fold
from bnfold.frontends.torch.capture import capture_as_is, quiet
from bnfold.frontends.torch.graph import TorchGraph
from bnfold.frontends.torch.hooks import duplicate, foreign_hooks, is_leaf, materialise
from bnfold.frontends.torch.observing import facts_of, graph_facts
from bnfold.frontends.torch.program import fold_program
from bnfold.frontends.torch.submodules import ModuleShelf, ModuleWriter
from bnfold.frontends.torch.writeback import Ledger
from bnfold.outcome import FoldReport


def fold_module(
    module: nn.Module, example_inputs: tuple[Any, ...] | None = None, options: FoldOptions = FoldOptions()
) -> tuple[nn.Module, FoldReport]:
    """A module with its batch norms folded, and what became of each; `example_inputs` are the positional arguments.

    With example inputs the module is exported, and the result is the module of the folded program. Without, or where
    hooks must be kept, it is traced symbolically, and ranks that its own modules do not enforce stay unknown. What
    symbolic tracing cannot see needs example inputs: in-place operators of Python (`y += 1`), autocast regions, and
    optional arguments, which it takes as given.
    Raises `UsageError` for a module in train mode, `Rejected` where it cannot be traced or a hook would be lost.
    """
    if isinstance(example_inputs, Tensor):
        raise UsageError("example_inputs is a tuple of tensors, not a tensor", hint="write (tensor,)")
    if isinstance(module, fx.GraphModule):
        return fold_graph_module(module, options, example_inputs)
    _demand_eval(module)
    hooks = () if isinstance(module, torch.jit.ScriptModule) else foreign_hooks(module)
    if example_inputs is not None and not hooks:
        program, report = fold_program(capture_as_is(module, example_inputs, batch_only=False), options)
        with quiet():
            return _owned(program.module()), report
    for path in hooks:
        if not is_leaf(module.get_submodule(path)):
            raise _lost_hook(path)
    return fold_graph_module(_symbolic(module), options, example_inputs)


def fold_graph_module(
    module: fx.GraphModule, options: FoldOptions = FoldOptions(), example_inputs: tuple[Any, ...] | None = None
) -> tuple[fx.GraphModule, FoldReport]:
    """A GraphModule with its batch norms folded into its submodules, and what became of each.

    Example inputs, if given, tell the ranks of all values; the module is not run on them.
    Raises `UsageError` where they do not fit the module, it is in train mode, or what stays of its batch norms is to be
    lowered and no example inputs tell how.
    """
    _demand_eval(module)
    if options.leftover == "affine" and example_inputs is None:
        raise UsageError(
            "leftover='affine' needs example_inputs, which tell the rank of what a batch norm reads",
            hint="pass example_inputs, or export the module first",
        )
    folded = duplicate(module)
    materialise(folded)
    facts = graph_facts(folded) if foreign_hooks(folded) else facts_of(folded, example_inputs)
    shelf = ModuleShelf(folded)
    writers: list[ModuleWriter] = []

    def writer(graph: TorchGraph) -> ModuleWriter:
        writers.append(ModuleWriter(folded, Ledger(graph, shelf)))
        return writers[0]

    modules = dict(folded.named_modules(remove_duplicate=False))
    graph = TorchGraph(folded.graph, modules, shelf.nodes(), shelf.tensors, facts, writer)
    report = fold(graph, options)
    writers[0].settle()
    folded.graph.lint()
    folded.recompile()
    return folded, report


def _symbolic(module: nn.Module) -> fx.GraphModule:
    copied = duplicate(module)
    materialise(copied)
    before = {name: buffer.clone() for name, buffer in copied.named_buffers()}
    try:
        with quiet():
            traced = fx.symbolic_trace(copied)
    except Exception as error:
        raise _untraceable(str(error)) from error
    if changed := [name for name, buffer in copied.named_buffers() if not _same(before.get(name), buffer)]:
        raise _untraceable(f"it writes to {changed[0]}")
    return traced


def _untraceable(cause: str) -> Rejected:
    return Rejected(
        f"the module cannot be traced symbolically: {cause}",
        code="untraceable",
        hint="pass example_inputs, so that it can be exported",
    )


def _same(before: Tensor | None, after: Tensor) -> bool:
    """Whether a plain tensor holds the same bits; of others nothing can be told."""
    if after.layout is not torch.strided or after.is_quantized or after.device.type == "meta":
        return True
    bits = [each.detach().reshape(-1).view(torch.uint8) for each in (before, after) if each is not None]
    return len(bits) == 2 and torch.equal(*bits)


def _demand_eval(module: nn.Module) -> None:
    """The module of an exported program has no mode: torch forbids `train` and `eval` on it."""
    if module.training and "eval" not in vars(module):
        raise UsageError("the module is in train mode; call model.eval() first", hint="model.eval()")


def _lost_hook(path: str) -> Rejected:
    return Rejected(
        f"a hook on {path or 'the module itself'} runs around several operators and would be lost",
        code="hooked",
        hint="remove the hook before folding and register it again on the folded module",
    )


def _owned(module: fx.GraphModule) -> fx.GraphModule:
    """The module of a program, in eval mode and with memory of its own."""
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = copies.setdefault(id(tensor), _clone(tensor))
    return module.eval()


def _clone(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

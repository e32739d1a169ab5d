"""What the code of each reason and finding means, what can be done about it, and what it looks like in a network."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TypeVar

from bnfold.errors import UsageError
from bnfold.graph import Reason
from bnfold.reports.conditions import FIRES, Condition
from bnfold.reports.text import WIDTH, did_you_mean
from bnfold.run import Finding

T = TypeVar("T", bound=Reason | Condition)

KINDS: dict[type[Reason | Condition], str] = {
    Reason: "Why a batch norm may stay:",
    Condition: "What inspect may find besides:",
}

EXAMPLES: dict[Reason, str] = {
    Reason.BATCH_STATISTICS: "nn.BatchNorm2d(64, track_running_stats=False); BatchNormalization with training_mode=1",
    Reason.HOOKED: "conv.register_forward_hook(f), or torch.nn.utils.parametrizations.weight_norm(conv)",
    Reason.SHARED_OUTPUT: "y = conv(x); return bn(y) + y",
    Reason.NOT_LINEAR: "an operator whose weight is an input of the model",
    Reason.NO_LINEAR_PRODUCER: "bn(relu(conv(x)))",
    Reason.READ_BY_NONLINEARITY: "relu(bn(x)): in a pre-activation network nothing linear is next to the batch norm",
    Reason.PADDED_BORDER: "nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1))",
    Reason.AXIS_UNKNOWN: "MatMul -> BatchNormalization where the rank of the MatMul's input is not known",
    Reason.AXIS_DIFFERS: "bn(linear(x)) with x of shape (N, C, L): linear maps the last axis, bn normalises axis 1",
    Reason.NOT_PER_CHANNEL: "Mul by a constant of shape (W,) behind a convolution",
    Reason.PARAMETER_NOT_CONSTANT: "F.conv2d(x, weight=hyper_network(z)) followed by a batch norm",
    Reason.TRAINED: "an ONNX file with training_info, whose update_binding names the weight of a convolution",
    Reason.VARIANCE_NOT_POSITIVE: "running_var = -1e-3 with eps = 1e-5",
    Reason.NON_FINITE: "running_mean = nan after a training run that diverged",
    Reason.OVERFLOW: "a float16 convolution before a batch norm with running_var = 1e-12: the scale exceeds 65504",
    Reason.QUANTISED: "Conv -> QuantizeLinear -> DequantizeLinear -> BatchNormalization",
    Reason.GROWTH_BUDGET: "one convolution's weight used by many layers, each with a batch norm of its own",
    Reason.EXCLUDED: "bnfold fold model.onnx --exclude 'backbone.stem.*'",
    Reason.UNKNOWN_OPERATOR: "my.domain::FancyConv -> BatchNormalization",
    Reason.UNSUPPORTED_ATTRIBUTE: "a Conv with an attribute that the ONNX operator does not define",
    Reason.OLD_OPSET: "a model of opset 6, where BatchNormalization had the attribute is_test",
    Reason.CAPTURED_BY_SUBGRAPH: "y = conv(x); the branches of an If read y; bn(y)",
    Reason.IS_GRAPH_OUTPUT: "y = conv(x); return y, bn(y)",
    Reason.MUTATED_IN_PLACE: "y = conv(x); y[:, :1].mul_(-1); bn(y)",
    Reason.EXTRA_OUTPUTS: "BatchNormalization with five outputs, of which the model uses the running mean",
    Reason.CHANNELS_MIXED: "bn(nn.Flatten()(conv(x))) with a number per pixel: a channel of conv covers many",
    Reason.JOINED: "conv(bn(x) + x): what is added was not scaled",
    Reason.GATED: "bn(conv(x) * gate(x)): what bn adds would be multiplied by the gate, which it is not now",
    Reason.MIXED_SIGN_MAXPOOL: "bn(max_pool(conv(x))) with gamma = [0.9, -0.3]: -0.3 * max(x) is not max(-0.3 * x)",
    Reason.TOO_FAR: "a batch norm behind a chain of more than 200 additions, none of them linear",
    Reason.NO_GAIN: "y = x + c, read by two MatMuls that no bias follows: one Add would become two",
    Reason.WINDOWS_DIFFER: "nn.Conv2d(8, 8, 3, stride=2, padding=1)(x) + nn.Conv2d(8, 8, 3)(x)",
    Reason.MORE_WORK: "nn.Linear(8, 64) behind nn.Linear(64, 8): one matrix of 64 by 64 is four times their work",
    Reason.NOT_READ: "a batch norm of an auxiliary head that was cut off",
}


def lookup(code: str | None) -> tuple[Reason | Condition, ...]:
    """What this code means, or all of them; an unknown code is a usage error that names the nearest."""
    every = (*Reason, *Condition)
    return every if code is None else (_named(code, every, "reason or finding"),)


def known(code: str) -> Reason:
    """The reason of this code."""
    return _named(code, tuple(Reason), "reason")


def _named(code: str, among: tuple[T, ...], kind: str) -> T:
    by_code = {each.code: each for each in among}
    if code not in by_code:
        raise UsageError(
            f"there is no {kind} code {code!r}{did_you_mean(code, list(by_code))}",
            code="unknown-reason",
            hint="bnfold explain",
        )
    return by_code[code]


def findings(explained: Sequence[Reason | Condition]) -> list[Finding]:
    """The entries as notes, which is how the report for programs carries them."""
    return [Finding(each.code, "note", each.message, each.remedy) for each in explained]


def render(explained: Sequence[Reason | Condition]) -> str:
    """One entry in full, or the code and the sentence of each of several; lines of at most 80 columns."""
    if len(explained) == 1:
        return _entry(explained[0])
    width = max(len(each.code) for each in explained)
    told = {
        each: fill(each.message, WIDTH, initial_indent=f"{each.code:{width}}  ", subsequent_indent=" " * (width + 2))
        for each in explained
    }
    lines = {kind: [told[each] for each in explained if isinstance(each, kind)] for kind in KINDS}
    parts = [[title, "", *lines[kind], ""] for kind, title in KINDS.items()]
    return "\n".join([line for part in parts for line in part] + ["More of one: bnfold explain CODE", ""])


def _entry(entry: Reason | Condition) -> str:
    lines = [fill(f"{entry.code}: {entry.message}.", WIDTH), "", fill(f"What to do: {entry.remedy}.", WIDTH)]
    fires = FIRES.get(entry) if isinstance(entry, Reason) else entry.fires
    if fires is not None:
        lines.insert(1, fill(f"Found where {fires}.", WIDTH))
    example = EXAMPLES.get(entry) if isinstance(entry, Reason) else entry.example
    if example is not None:
        lines.append(fill(f"Example: {example}", WIDTH, break_long_words=False, break_on_hyphens=False))
    return "\n".join([*lines, ""])

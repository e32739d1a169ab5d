"""What a finding can be about: a stable code for each, what it means, and what can be done.

A batch norm that is broken, or that is no fixed affine map, has the code of that `Reason`. `--fail-on` names any of
these codes, or a severity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum

from bnfold.errors import PolicyViolation, UsageError
from bnfold.evidence import REACH
from bnfold.graph import Reason
from bnfold.reports.limits import (
    DEVIATIONS,
    FLOAT16_LARGEST,
    LARGE_CANCELLATION,
    LARGE_CREST,
    LARGE_SPREAD,
    LEAST_KEPT,
    NEGLIGIBLE,
    OUTLYING,
    SMALLEST_NORMAL,
    STALE,
    USUAL_EPSILON,
)
from bnfold.reports.text import did_you_mean, plural
from bnfold.run import Finding

FAILING = {"error": ("error",), "warning": ("error", "warning")}
"""The severities that fail under each word of `--fail-on`."""

FIRES = {
    Reason.VARIANCE_NOT_POSITIVE: "variance + epsilon is 0 or less in a channel whose numbers are all finite",
    Reason.NON_FINITE: "gamma, beta, mean or variance of a channel is NaN or infinite",
    Reason.BATCH_STATISTICS: "a batch norm stays for this reason",
}
"""Where exactly a reason is a finding too."""

FOUND_REASONS = tuple(FIRES)


class Condition(Enum):
    """Something to know about a model: code, meaning, remedy, an example, and where exactly it is found."""

    UNTRAINED = (
        "untrained",
        "every running mean is 0 and every running variance 1, as before the first training step",
        "load the trained weights, buffers included, or let some batches pass in train mode",
        "model.load_state_dict(weights, strict=False) where the weights lack running_mean and running_var",
        "every running mean is 0, every running variance 1, and epsilon above 0 (a frozen batch norm stores none)",
    )
    FEW_BATCHES = (
        "few-batches",
        "training took so few batches that much of the running statistics is still the mean 0 and variance 1 that they "
        "begin with",
        "train for longer, or measure the statistics with bnfold.recalibrate; nothing where they were measured on few "
        "batches in another way, as torch.optim.swa_utils.update_bn does, or where training began with others",
        "nn.BatchNorm2d(64) after 10 batches: 0.9^10 = 35 % of each running statistic is 0 or 1",
        f"num_batches_tracked is n > 0, momentum is neither 0 nor None, and (1 - momentum)^n is above {STALE:g}, "
        "unless some running variance is smaller than that and so cannot have begun as 1; ONNX stores no counter",
    )
    NEAR_ZERO_VARIANCE = (
        "near-zero-variance",
        "what a channel reads hardly varied in training, so any change of it at inference is magnified: by gamma / "
        "sqrt(eps), or far more than in the other channels",
        "look which it is: an input that was constant (a feature that was always the same, a filter behind dead ones) "
        "can go with its channel; weights in front that have become tiny (by weight decay, or in a conversion) are to "
        "be pruned, or loaded or trained again",
        "running_var = 1e-12 with eps = 1e-5: a change of 0.1 at the input becomes 31.6 times gamma",
        f"the running variance is below {NEGLIGIBLE:g} times epsilon, or below {OUTLYING:g} times that of the median "
        "channel; channels that are dead or constant do not count",
    )
    HUGE_VARIANCE = (
        "huge-variance",
        "the running variance of a channel is larger than float16 can hold, so what the channel reads is very large",
        "normalise the input of the network, or look whether training diverged",
        "images of 0 to 65535 in front of the first batch norm: the running variance is about 3e8",
        f"the running variance is above {FLOAT16_LARGEST:g}, unless all channels are dead or constant",
    )
    DEAD_CHANNELS = (
        "dead-channels",
        "a channel is zero whatever the network reads: gamma and beta are 0, or a ReLU behind it never fires",
        "prune the channels, or train again with less weight decay or a smaller learning rate",
        "gamma = 0.01 and beta = -0.5 in front of a ReLU: the input would have to be 50 deviations above its mean",
        f"gamma and beta are 0; or only ReLUs read the result, and beta is at or below -{DEVIATIONS:g} times |gamma|",
    )
    CONSTANT_CHANNELS = (
        "constant-channels",
        "gamma is 0, so the channel is beta whatever the network reads",
        "prune the channels: their constant can go into the next bias",
        "gamma = 0 and beta = 0.3 after training with a penalty on gamma",
        "gamma is 0 and the channel is not dead",
    )
    FLOAT16_OVERFLOW = (
        "float16-overflow",
        "a number is larger than the largest of float16 (65504) once gamma / sqrt(variance + eps) is multiplied out",
        "run the model in float32 or bfloat16, or prune channels of near-zero variance",
        "gamma = 1, running_var = 0 and eps = 1e-12: the scale is 1e6",
        f"the magnitude of a folded weight or bias is above {FLOAT16_LARGEST:g}, and none of its channel was before; "
        f"or a batch norm stays whose |gamma| / sqrt(variance + eps) is above {FLOAT16_LARGEST:g}",
    )
    SCALE_SPREAD = (
        "scale-spread",
        "few channels have weights so large that one int8 scale for the whole tensor leaves the others three bits",
        "quantise weights per channel, or equalise the layers first (Nagel et al., 2019, arXiv 1906.04721)",
        "a depthwise convolution whose folded weights reach 40 in one channel and 0.5 in the others",
        f"the largest folded weight of a channel is more than {LARGE_SPREAD:g} times that of the median channel",
    )
    CHANNEL_PEAK = (
        "channel-peak",
        "folding made few weights of a channel so large that int8 leaves the others less than 16 of its 127 steps",
        "quantise with 8-bit weights, compare --merge never on your own data, or keep the operator in float",
        "the identity branch of a RepVGG block: one tap of 2.4 among weights of 0.1, in the same channel",
        f"the largest weight of a channel is more than {LARGE_CREST:g} times the root mean square of its weights and "
        "was not before, where operators were merged or took in a batch norm in front of them",
    )
    DROPOUT_BEFORE_NORM = (
        "dropout-before-norm",
        "a dropout is in front of a batch norm: its input varied more in training than it does at inference",
        "move the dropout behind the last batch norm, or estimate the statistics again with the dropout off",
        "nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64)); Li et al., 2018, arXiv 1801.05134",
        f"a dropout (no alpha dropout) of a probability between 0 and 1 is in front, with at most {REACH - 1} "
        "operators between, all linear layers, ReLUs, additions of a constant and reshapes",
    )
    UNUSUAL_MOMENTUM = (
        "unusual-momentum",
        "a training step would keep less than half of the running statistics: momentum by the other convention",
        "torch's momentum is the part that a step replaces (0.1), that of ONNX and Keras the part it keeps (0.9)",
        "nn.BatchNorm2d(64, momentum=0.99), copied from Keras",
        f"torch's momentum is above {1 - LEAST_KEPT:g}, or that of ONNX below {LEAST_KEPT:g}",
    )
    UNUSUAL_EPSILON = (
        "unusual-epsilon",
        "the epsilon is not between 1e-7 and 1e-2",
        "look whether it was meant",
        "nn.BatchNorm2d(64, eps=0.9): eps and momentum exchanged",
        f"epsilon is below {USUAL_EPSILON[0]:g} or above {USUAL_EPSILON[1]:g}",
    )
    SUBNORMAL = (
        "subnormal",
        "folding made a number that is too small for the full precision of its type",
        "use a type of larger range: bnfold export writes float32 unless --dtype keep, and bfloat16 reaches as far",
        "a float16 weight of 1e-3 and a scale of 1e-3",
        "a folded number is not 0 and smaller than the smallest normal one of its type, and none of its channel was: "
        + ", ".join(f"{smallest:.3g} for {name}" for name, smallest in SMALLEST_NORMAL.items()),
    )
    CANCELLATION = (
        "cancellation",
        "the kernels of branches that were merged nearly cancel, which costs bits",
        "compare the outputs, or use --merge never",
        "two branches whose kernels differ in the fourth digit, subtracted",
        f"the terms of some merged kernel are {LARGE_CANCELLATION:g} times as large as their sum, or more",
    )
    BASELINE_REGRESSED = (
        "baseline-regressed",
        "a batch norm folded in the report that --baseline names, and does not now",
        "see its reason: bnfold explain CODE",
        "a second reader was added to the convolution in front of it",
        "the baseline has a batch norm of this name folded, and it stays now, for a reason that --accept does not name",
    )
    BASELINE_NEW = (
        "baseline-new",
        "a batch norm is not in the baseline, and stays",
        "see its reason, then write a new baseline",
        "a layer was added to the network",
        "a batch norm stays, and none of its name is in the baseline",
    )
    BASELINE_GONE = (
        "baseline-gone",
        "a batch norm of the baseline is not in the model",
        "write a new baseline if that was meant",
        "a layer was removed, or renamed",
        "a batch norm is in the baseline, and none of its name is in the model",
    )

    def __init__(self, code: str, message: str, remedy: str, example: str, fires: str) -> None:
        self.code = code
        self.message = message
        self.remedy = remedy
        self.example = example
        self.fires = fires


def refuse_unknown(word: str) -> None:
    """Raise `UsageError` for a word of `--fail-on` that is neither a severity nor the code of a finding."""
    words = [*FAILING, *(each.code for each in (*Condition, *FOUND_REASONS))]
    if word not in words:
        raise UsageError(
            f"--fail-on {word!r} is neither error, warning nor the code of a finding{did_you_mean(word, words)}",
            code="unknown-finding",
            hint="bnfold explain",
        )


def enforce(findings: Iterable[Finding], fail_on: Iterable[str]) -> None:
    """Raise `PolicyViolation` for findings of a code or severity that `fail_on` names; "warning" includes errors."""
    failing = {each for word in fail_on for each in FAILING.get(word, (word,))}
    found = [finding for finding in findings if not failing.isdisjoint((finding.code, finding.severity))]
    if found:
        counts = Counter(finding.code for finding in found)
        told = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()))
        hint = f"bnfold explain {found[0].code}"
        raise PolicyViolation(f"{plural(len(found), 'finding')} not allowed by --fail-on: {told}", hint=hint)

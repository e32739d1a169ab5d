"""Wrong folds, on purpose: `python tests/mutants.py` breaks the fold code in one place at a time and runs the tests.

A mutant is one line of the fold code replaced by a plausible mistake. Each must turn the suite red; the table says
which test saw it first. The tree is copied first: nothing here changes the working copy.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = (
    "tests/test_algebra.py",
    "tests/test_travel.py",
    "tests/test_folding.py",
    "tests/test_networks.py",
    "tests/test_onnx_frontend.py",
    "tests/test_torch_frontend.py",
)
ROWS = ("tests/test_merge_cases.py",)
UNDOING = ("tests/test_undoing.py",)
MERGE_SUITES = {
    "window.py": ("tests/test_window.py", "tests/test_combining.py", *ROWS),
    "combining.py": ("tests/test_combining.py", *ROWS),
    "merging.py": ROWS,
    "plan.py": (*UNDOING, *ROWS),
    "undoing.py": UNDOING,
    "frontends/onnx/shaping.py": UNDOING,
    "verify/merged.py": ("tests/test_merged.py", *ROWS),
}


@dataclass(frozen=True)
class Mutant:
    """One plausible mistake: in `file`, the first `before` behind the text `behind` becomes `after`; `suite` sees."""

    name: str
    file: str
    before: str
    after: str
    behind: str = ""
    suite: tuple[str, ...] = SUITE

    def spoilt(self, sound: str) -> str | None:
        """The source with the mistake; None if there is no such place any more."""
        head, marker, tail = sound.partition(self.behind) if self.behind else ("", "", sound)
        return head + marker + tail.replace(self.before, self.after, 1) if self.before in tail else None


PASSAGES = ("Same", "Permute", "Reshape", "Concat", "Split", "Sum", "Gate")
UP = "def upstream(self, port: int, affine: ChannelAffine) -> Asked | Reason:\n"
DOWN = "def downstream(self, affines: Affines) -> Affines | Reason:\n"

CORE = (
    # the rules
    Mutant(
        "other readers not asked",
        "rules.py",
        "if refusal := _seen_by_others(draft, value, affine, reader):",
        "if False:",
    ),
    Mutant(
        "weights are no readers",
        "rules.py",
        "isinstance(use, Reason) or use[1] is None:\n            return _shared",
        "isinstance(use, Reason):\n            return _shared",
    ),
    Mutant("a second read of one value forgotten", "rules.py", "if mine > 1 or (", "if ("),
    Mutant(
        "every reader is blind",
        "rules.py",
        "use[0] != reader and (written or not _blind(draft, use[0], use[1], affine))",
        "False",
    ),
    Mutant("blind to what is written", "rules.py", "(written or not _blind", "(not _blind"),
    Mutant("other outputs not asked", "rules.py", "if index != port and effect is not None and (", "if False and ("),
    Mutant(
        "axes not compared",
        "rules.py",
        "if (affine.axis, affine.channels) != (axis, channels):",
        "if affine.channels != channels:",
    ),
    Mutant(
        "channels not compared",
        "rules.py",
        "if (affine.axis, affine.channels) != (axis, channels):",
        "if affine.axis != axis:",
    ),
    Mutant(
        "the wrong side",
        "rules.py",
        'folded = affine @ op if side == "after"',
        'folded = affine @ op if side == "before"',
    ),
    Mutant(
        "shift crosses the padding",
        "rules.py",
        'if side == "before" and op.bordered and affine.shifts and node not in self.bare:',
        "if False:",
    ),
    Mutant("fits not asked", "rules.py", "None if self.obstacles else self.graph.fits(node, folded)", "None"),
    Mutant(
        "what was written is forgotten",
        "rules.py",
        "self.writes.get(node) or self.graph.read(node)",
        "self.graph.read(node)",
    ),
    Mutant(
        "an affine vanishes twice",
        "rules.py",
        "if node in draft.vanished:\n        return _ask",
        "if False:\n        return _ask",
    ),
    Mutant("affines composed the other way", "rules.py", "return second @ first if", "return first @ second if"),
    Mutant("affines of two axes composed", "rules.py", "if len(axes) < 2 and len(sizes) < 2", "if len(sizes) < 2"),
    Mutant("a copy that is written never goes", "rules.py", " and not _is_copy(draft):", ":"),
    Mutant("copies are counted one by one", "folding.py", "plan.leniently() if plan.closed", "plan if plan.closed"),
    Mutant("what is written in place vanishes", "rules.py", "written = any(", "written = False and any("),
    Mutant(
        "one of the inputs is enough",
        "rules.py",
        "        if refusal is not None:\n            return refusal\n    return None\n\n\ndef _seen",
        "    return None\n\n\ndef _seen",
    ),
    Mutant(
        "the first choice or none",
        "rules.py",
        "            refusals.append(refusal)\n            continue",
        "            return refusal",
    ),
    Mutant("the choice not taken", "rules.py", "for choice, wish in asked.either:", "for choice, wish in ():"),
    Mutant("a failed choice leaves its traces", "rules.py", "attempt = draft.copy()", "attempt = draft"),
    Mutant(
        "outputs of the model are no readers",
        "rules.py",
        "            if isinstance(use, Reason):\n                return Refusal(use)",
        "            if isinstance(use, Reason):\n                continue",
    ),
    Mutant("a reader of a weight takes it", "rules.py", "            if port is None:\n", "            if False:\n"),
    Mutant(
        "readers visited as they come",
        "rules.py",
        "(self.draft.graph.position(node), len(self.nodes))",
        "(0, len(self.nodes))",
    ),
    Mutant(
        "one port forgets the other",
        "rules.py",
        "self.arrived.setdefault(node, {})[port] = affine",
        "self.arrived[node] = {port: affine}",
    ),
    Mutant("no way is too far", "rules.py", "if depth > FARTHEST or ", "if "),
    Mutant(
        "the excluded vanish with others",
        "plan.py",
        "if node in self.kept and isinstance(reading, ChannelAffine)",
        "if False",
    ),
    # the passages
    *(
        Mutant(
            f"nothing goes up through {name}",
            "travel.py",
            UP,
            f"{UP}        return Reason.NOT_LINEAR\n",
            f"class {name}:",
        )
        for name in PASSAGES
    ),
    *(
        Mutant(
            f"nothing goes down through {name}",
            "travel.py",
            DOWN,
            f"{DOWN}        return Reason.NOT_LINEAR\n",
            f"class {name}:",
        )
        for name in PASSAGES
    ),
    Mutant("an axis that is mixed passes", "travel.py", "if affine.axis in self.mixed:", "if False:"),
    Mutant("a negative scale passes a maximum", "travel.py", "if self.positive and not", "if False and not"),
    Mutant("a scale of zero passes a maximum", "travel.py", "(affine.scale > 0).all()", "(affine.scale >= 0).all()"),
    Mutant("a border is not asked", "travel.py", "return None if stays else self.because", "return None"),
    Mutant("an axis that went is not counted, up", "travel.py", "affine.along(self.kept[affine.axis])", "affine"),
    Mutant(
        "an axis that went is not counted, down", "travel.py", "affine.along(self.kept.index(affine.axis))", "affine"
    ),
    Mutant("permuted the other way, up", "travel.py", "self.order[affine.axis]", "self.order.index(affine.axis)"),
    Mutant("permuted the other way, down", "travel.py", "self.order.index(affine.axis)", "self.order[affine.axis]"),
    Mutant(
        "reshaped the other way, up",
        "travel.py",
        "carried(affine, self.after, self.before)",
        "carried(affine, self.before, self.after)",
    ),
    Mutant(
        "reshaped the other way, down",
        "travel.py",
        "carried(affine, self.before, self.after)",
        "carried(affine, self.after, self.before)",
    ),
    Mutant("symbols not compared", "travel.py", "and right[1] == other[1]", ""),
    Mutant("an unknown size is one", "travel.py", "if None in sizes:", "if False:"),
    Mutant(
        "a symbol counts once",
        "travel.py",
        "Counter(size for size in sizes if isinstance(size, str)).items()",
        "{(size, 1) for size in sizes if isinstance(size, str)}",
    ),
    Mutant(
        "what is left is not compared",
        "travel.py",
        "left is not None and left == _product(after[:axis])",
        "left is not None",
    ),
    Mutant("an unknown size joins the channel", "travel.py", "if len(known) == end and", "if"),
    Mutant("the digit by the wrong stride", "travel.py", "index // stride % size", "index % size"),
    Mutant(
        "the channel by the wrong stride",
        "travel.py",
        "index // right % channels",
        "index % channels",
        "np.arange(top)",
    ),
    Mutant(
        "the digit decides anyway",
        "travel.py",
        "return moved if same.all() else Reason.CHANNELS_MIXED\n\n\n",
        "return moved\n\n\n",
    ),
    Mutant("digits that do not nest", "travel.py", "top % (right * channels) or top % (stride * size) or ", ""),
    Mutant("concatenated sizes not summed", "travel.py", "or sum(sizes) != affine.channels", ""),
    Mutant("every part from the start", "travel.py", "np.arange(start, start + size)", "np.arange(size)"),
    Mutant("parts need not be alike", "travel.py", "all(_twins(affine, known[0]) for affine in known)", "True"),
    Mutant("a part without an affine is alike", "travel.py", "alike = len(known) == len(affines) and", "alike ="),
    Mutant(
        "parts of other axes joined",
        "travel.py",
        "if any(affine.axis not in (None, self.axis) for affine in known):",
        "if False:",
    ),
    Mutant(
        "the other pieces too",
        "travel.py",
        "index = np.full(self.size, -1, dtype=np.intp)",
        "index = np.zeros(self.size, dtype=np.intp)",
    ),
    Mutant(
        "pieces the other way round",
        "travel.py",
        "index[picked] = np.arange(len(picked))",
        "index[: len(picked)] = picked",
    ),
    Mutant("what is picked twice is not compared", "travel.py", "return moved if same.all() else None", "return moved"),
    Mutant("a dropped axis not counted, up", "travel.py", "axis += 1", "axis += 0"),
    Mutant("a dropped axis not counted, down", "travel.py", "- (self.dropped and affine.axis > self.axis)", ""),
    Mutant(
        "every piece is the first",
        "travel.py",
        "for picked in self.picks]",
        "for picked in self.picks[:1] * self.outputs]",
    ),
    Mutant("an axis broadcast takes the scale", "travel.py", "if axis < 0 or shape[axis] == 1:", "if False:"),
    Mutant("ranks of terms not counted, up", "travel.py", "return axis - max(ranks) + len(shape)", "return axis"),
    Mutant("a term's size not compared", "travel.py", "if shape[axis] == affine.channels else Reason.AXIS_UNKNOWN", ""),
    Mutant("the sign of a term lost, up", "travel.py", "affine.shifting(float(sign))", "affine.shifting()"),
    Mutant("the sign of a term lost, down", "travel.py", "affine if sign == 1 else affine.opposite()", "affine"),
    Mutant(
        "the shift to every term",
        "travel.py",
        "_on_operand(affine.scaling(), self.shapes, term)",
        "_on_operand(affine, self.shapes, term)",
    ),
    Mutant(
        "the scale to one term",
        "travel.py",
        "every = tuple(each for each in scaled if isinstance(each, ChannelAffine))",
        "every = (scaled[0], *every[1:])",
    ),
    Mutant("scales of terms need not be equal", "travel.py", "not _equal_scales(total, moved)", "False"),
    Mutant("a term without an affine takes any scale", "travel.py", "(bare and moved.scales) or", ""),
    Mutant(
        "a shift crosses a product",
        "travel.py",
        "if affine.shifts:\n            return Reason.GATED",
        "if False:\n            return Reason.GATED",
    ),
    Mutant(
        "a matrix product takes a scale per channel",
        "travel.py",
        "if self.uniform and affine.axis is not None",
        "if False",
    ),
    Mutant("both factors of a product", "travel.py", "if len(given) != 1 or", "if not given or"),
    Mutant("a quotient takes it below", "travel.py", "or given[0][0] not in self.takes:", "or False:"),
    # what an affine keeps on its way
    Mutant("a factor forgotten", "algebra.py", "self.shift * factor, self.axis", "self.shift, self.axis"),
    Mutant(
        "the origin of a factor forgotten",
        "algebra.py",
        "Part(self.origin, scaled=False, shifted=factor)",
        "Part(self.origin, scaled=False)",
    ),
    Mutant("only one shift of a sum", "algebra.py", "self.shift + other.shift)", "self.shift)"),
    Mutant(
        "an origin chained the other way",
        "algebra.py",
        "Chain(first.origin, self.origin)",
        "Chain(self.origin, first.origin)",
    ),
    Mutant("what differs is alike", "algebra.py", "(self.shift == self.shift[0]).all()", "True"),
    Mutant("alike on another axis", "algebra.py", "return self.axis == other.axis and", "return"),
)

MERGING = tuple(
    replace(mutant, suite=MERGE_SUITES[mutant.file])
    for mutant in (
        # where the taps sit
        Mutant(
            "outputs of other sizes added",
            "window.py",
            "if (self.stride, self.excess) != (other.stride, other.excess):",
            "if self.stride != other.stride:",
        ),
        Mutant(
            "outputs of other strides added",
            "window.py",
            "if (self.stride, self.excess) != (other.stride, other.excess):",
            "if self.excess != other.excess:",
        ),
        Mutant(
            "the step between two windows not shared",
            "window.py",
            "gcd(*steps, one[0] - other[0]) or 1",
            "gcd(*steps) or 1",
        ),
        Mutant(
            "one tap after the other, whatever the step",
            "window.py",
            "(np.arange(count) * step + first - start) // stride",
            "np.arange(count) + (first - start) // stride",
        ),
        Mutant(
            "the border behind is that of the first",
            "window.py",
            "tuple(excess + last for excess, last in zip(self.excess, after, strict=True))",
            "self.after",
        ),
        Mutant(
            "taps behind a stride not spread",
            "window.py",
            "tuple(size * step for size, step in",
            "tuple(size for size, step in",
        ),
        Mutant("strides not multiplied", "window.py", "tuple(ours * theirs for", "tuple(max(ours, theirs) for"),
        Mutant(
            "what something else decides is united",
            "window.py",
            "if self.fixed is not None or other.fixed is not None or len",
            "if len",
        ),
        # sums and products
        Mutant(
            "kernels begin at the same tap",
            "combining.py",
            "wide[..., op.window.places(window)] = taps",
            "wide[..., : taps.shape[-1]] = taps",
        ),
        Mutant(
            "groups of one operator are those of both",
            "combining.py",
            "groups = gcd(first.groups, second.groups)",
            "groups = first.groups",
        ),
        Mutant(
            "what was apart is mixed",
            "combining.py",
            "wide[:, index, :, index] = split[:, index]",
            "wide[:, index, :, 0] = split[:, index]",
        ),
        Mutant("a sum may broadcast", "combining.py", "if axes[0] != axes[1]:", "if False:"),
        Mutant(
            "a bias crosses a border",
            "combining.py",
            "if second.bordered and np.any(first.evaluate().bias != 0):",
            "if False:",
        ),
        Mutant("the bias of the first forgotten", "combining.py", "outer.bias + moved", "outer.bias"),
        Mutant(
            "groups cost nothing",
            "combining.py",
            "op.out_channels * (op.in_channels // op.groups) * op.window.taps",
            "op.out_channels * op.window.taps",
        ),
        Mutant(
            "the sum cancels in the best channel", "combining.py", "np.nanmax(ratios, initial=1.0)", "np.nanmin(ratios)"
        ),
        # the rules
        Mutant("a sum may add work", "merging.py", "if work(both) > work(total) + _cost(branch, op):", "if False:"),
        Mutant("a product may add work", "merging.py", "if saved < addition or any(", "if any("),
        Mutant(
            "what is between two operators is read elsewhere",
            "merging.py",
            "    if not is_read_once(graph, value):\n        return refuse",
            "    if False:\n        return refuse",
        ),
        Mutant(
            "a branch is read elsewhere",
            "merging.py",
            "while is_read_once(graph, value) and (node := graph.producer(value)) is not None:\n        reading",
            "while (node := graph.producer(value)) is not None:\n        reading",
        ),
        Mutant(
            "a turned value is read elsewhere",
            "undoing.py",
            "graph.producer(between) if is_read_once(graph, between) else None",
            "graph.producer(between)",
        ),
        Mutant(
            "turned is turned back",
            "undoing.py",
            "len(there) == len(back) and all(there[back[axis]] == axis for axis in range(len(there)))",
            "len(there) == len(back)",
        ),
        Mutant("a shape needs no proof", "undoing.py", "is_shape(back.asked, there.before)", "True"),
        Mutant("any size may be left to compute", "undoing.py", "len(open_axes) > 1 or 0 in others", "0 in others"),
        Mutant("a number is no demand", "undoing.py", " or (isinstance(size, int) and size != -1)", ""),
        Mutant("what a squeeze demands is not kept", "undoing.py", "if there.demands:", "if False:"),
        Mutant("a view that is written is undone", "undoing.py", "if Reason.MUTATED_IN_PLACE in seen:", "if False:"),
        Mutant("an input becomes an output", "undoing.py", "return not is_output or (", "return True or ("),
        Mutant("pairs go where nothing folds", "plan.py", "if not (self.taken or self.lowered):", "if False:"),
        Mutant(
            "onnx: sizes without a name are one", "frontends/onnx/shaping.py", 'and size.startswith("?")', "and False"
        ),
        Mutant("the sign of the host forgotten", "merging.py", "sign = host.sign * branch.sign", "sign = branch.sign"),
        Mutant(
            "what is left of a difference keeps its sign",
            "merging.py",
            "sign * (1 if len(stay) == 1 else signs[place[1]])",
            "sign * signs[place[1]]",
        ),
        Mutant(
            "what is written in place is one value",
            "merging.py",
            "if Reason.MUTATED_IN_PLACE in graph.uses(data):",
            "if False:",
        ),
        Mutant("a sum need not fit", "merging.py", "if reason := graph.fits(node, total):", "if reason := None:"),
        Mutant(
            "only the largest takes in others", "merging.py", "        refusal = answer\n", "        return answer\n"
        ),
        Mutant(
            "a bias may need a node",
            "merging.py",
            "-work(op), inserts,",
            "-work(op), False,",
        ),
        # the plan
        Mutant(
            "what was merged reads on",
            "plan.py",
            "elif use[0] not in self.moved and self._stays(*use):",
            "elif self._stays(*use):",
        ),
        Mutant(
            "the first term is what stays",
            "plan.py",
            "self.graph.inputs(maker)[self.left[maker][0]]",
            "self.graph.inputs(maker)[0]",
        ),
        Mutant("a sum keeps its signs", "plan.py", "return reading.only(self.left[node])", "return reading"),
        # the certificate
        Mutant(
            "certificate: signs",
            "verify/merged.py",
            "total.taps + term.taps * number.scalar(sign)",
            "total.taps + term.taps",
        ),
        Mutant(
            "certificate: offsets",
            "verify/merged.py",
            "[tap * step - before for tap in range(taps)]",
            "[tap * step for tap in range(taps)]",
        ),
        Mutant("certificate: strides and sizes of a sum", "verify/merged.py", "if len(known) > 1:", "if False:"),
        Mutant(
            "certificate: the value itself",
            "verify/merged.py",
            "if alone and (any(step != 1 for step in stride) or any(excess)):",
            "if False:",
        ),
        Mutant(
            "certificate: the affine of a branch",
            "verify/merged.py",
            "one if affine is None else affine.scale[rows]",
            "one",
        ),
        Mutant(
            "certificate: the shift in front",
            "verify/merged.py",
            "whole.bias + (whole.taps * shift).sum(axis=(1, 2))",
            "whole.bias",
        ),
        Mutant(
            "certificate: the bias of the first",
            "verify/merged.py",
            "bias[rows] + (matrix * inner.bias).sum(axis=1)",
            "bias[rows]",
        ),
        Mutant(
            "certificate: the stride of the first",
            "verify/merged.py",
            "at = tuple(o * s + i for",
            "at = tuple(o + i for",
        ),
    )
)

MUTANTS = (
    *CORE,
    *MERGING,
    Mutant("epsilon forgotten", "algebra.py", "np.sqrt(variance + epsilon)", "np.sqrt(variance)"),
    Mutant("sqrt(var) + eps", "algebra.py", "np.sqrt(variance + epsilon)", "(np.sqrt(variance) + epsilon)"),
    Mutant("mean not scaled", "algebra.py", "beta - mean * scale", "beta - mean"),
    Mutant("bias not scaled", "algebra.py", "affine.scale * before.bias + affine.shift", "before.bias + affine.shift"),
    Mutant("beta ignored", "algebra.py", "affine.scale * before.bias + affine.shift", "affine.scale * before.bias"),
    Mutant("forward shift ignored", "algebra.py", "before.bias + moved", "before.bias"),
    Mutant(
        "output scale on the input axis",
        "algebra.py",
        "scale = affine.scale.reshape(self.groups, -1, 1, 1)",
        "scale = affine.scale.reshape(self.groups, 1, -1, 1)",
    ),
    Mutant(
        "readers behind a vanished affine forgotten",
        "plan.py",
        "values += [self.graph.outputs(use[0])[0]] * self._stays(*use)",
        "pass",
    ),
    Mutant("pending operator forgotten", "plan.py", "if node in self.pending:", "if False:"),
    Mutant("statistics not looked at", "graph.py", "if not (variance + epsilon > 0).all():", "if False:"),
    Mutant(
        "NaN statistics accepted",
        "graph.py",
        "if not all(np.isfinite(array).all() for array in statistics):",
        "if False:",
    ),
    Mutant("equal copies kept apart", "plan.py", "len(set(versions))", "len(versions)"),
    Mutant(
        "ONNX: training_mode ignored", "frontends/onnx/lenses.py", 'if integer(node, "training_mode", 0):', "if False:"
    ),
    Mutant("ONNX: alpha ignored", "frontends/onnx/lenses.py", "if self.weight_slot.factor != 1:", "if False:"),
    Mutant(
        "ONNX: beta ignored",
        "frontends/onnx/lenses.py",
        "self.bias.array().reshape(-1) * self.bias_slot.factor",
        "self.bias.array().reshape(-1)",
    ),
    Mutant(
        "ONNX: transA ignored",
        "frontends/onnx/lenses.py",
        'in_axis = 0 if integer(node, "transA", 0) else 1',
        "in_axis = 1",
    ),
    Mutant(
        "ONNX: auto_pad ignored",
        "frontends/onnx/lenses.py",
        "return any(pads) or (same and prod(kernel) > 1)",
        "return any(pads)",
    ),
    Mutant(
        "ONNX: ConvTranspose never bordered",
        "frontends/onnx/lenses.py",
        "(transposed and _spreads(node, kernel))",
        "False",
    ),
    Mutant(
        "ONNX: unknown attributes accepted",
        "frontends/onnx/lenses.py",
        "return any(name not in named or attribute.is_ref()",
        "return any(attribute.is_ref()",
    ),
    Mutant(
        "ONNX: any constant is a bias",
        "frontends/onnx/lenses.py",
        "return prod(shape) == 1 or (axis >= 0 and shape[axis] == prod(shape) == channels)",
        "return prod(shape) in (1, channels)",
    ),
    Mutant("ONNX: shared tensor written in place", "frontends/onnx/storing.py", "and len(value.uses()) == 1", ""),
    Mutant(
        "ONNX: graph outputs are no readers", "frontends/onnx/graph.py", "Reason.IS_GRAPH_OUTPUT", "Reason.NOT_READ"
    ),
    Mutant(
        "ONNX: rounded twice to bfloat16",
        "frontends/onnx/rounding.py",
        "return _odd_float32(array).astype(ml_dtypes.bfloat16)",
        "return array.astype(ml_dtypes.bfloat16)",
    ),
    Mutant("torch: batch statistics accepted", "frontends/torch/lenses.py", "if trains(call) or not", "if not"),
    Mutant(
        "torch: padding='same' pads nothing",
        "frontends/torch/lenses.py",
        'return prod(shape[2:]) > 1 if padding == "same" else',
        'return False if padding == "same" else',
    ),
    Mutant(
        "torch: transposed weight not swapped",
        "frontends/torch/lenses.py",
        "return grouped.transpose(0, 2, 1, 3)",
        "return grouped",
    ),
    Mutant(
        "torch: views and writes not looked at",
        "frontends/torch/graph.py",
        "if self.data(node) in self.pinned:",
        "if False:",
    ),
    Mutant("torch: hooks not looked at", "frontends/torch/graph.py", "return Reason.HOOKED", "pass"),
)


def main() -> int:
    """Run the mutants named by number on the command line, or all; print a table; 1 if one survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, help="which mutants; none: all")
    parser.add_argument("--known", nargs="+", type=Path, default=(), help="former tables: their tests are tried first")
    options = parser.parse_args()
    chosen = [MUTANTS[number] for number in options.numbers] or list(MUTANTS)
    known = {name: test for path in options.known for name, test in rows(path.read_text())}
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        print("| mutant | caught by |\n| --- | --- |", flush=True)
        verdicts = []
        for mutant in chosen:
            verdicts.append(caught_by(mutant, tree, first=known.get(mutant.name)))
            print(f"| {mutant.name} | {verdicts[-1] or 'NOBODY'} |", flush=True)
    print(f"\n{sum(map(bool, verdicts))} of {len(verdicts)} mutants caught")
    return 0 if all(verdicts) else 1


def rows(table: str) -> list[tuple[str, str]]:
    """The mutants of a printed table and the tests that saw them."""
    return re.findall(r"^\| (.+?) \| (tests/.+) \|$", table, re.MULTILINE)


def copy_tree(folder: Path) -> Path:
    """The package, its tests and models, where they may be broken."""
    for name in ("bnfold", "tests", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def caught_by(mutant: Mutant, tree: Path, suite: tuple[str, ...] | None = None, first: str | None = None) -> str | None:
    """Break one place, run the suite until the first failure, mend it again: the name of the test that failed. If the
    test `first` fails, that is enough."""
    file = tree / "bnfold" / mutant.file
    sound = file.read_text()
    spoilt = mutant.spoilt(sound)
    if spoilt is None:
        raise SystemExit(f"{mutant.name}: {mutant.file} no longer holds {mutant.before!r}")
    file.write_text(spoilt)
    try:
        if first is not None and first_failure(tree, (first,)) == first:
            return first
        return first_failure(tree, suite or mutant.suite)
    finally:
        file.write_text(sound)


def first_failure(tree: Path, suite: tuple[str, ...]) -> str | None:
    """The first test of the suite that fails in this tree; None if all pass."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *suite]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest exit {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())

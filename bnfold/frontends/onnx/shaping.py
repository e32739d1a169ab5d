"""Operators that only move numbers: which element goes where, as far as the graph enforces it.

A size that is not known is a symbol, the same one wherever it is the same size, so that a dynamic batch cancels. The
target of a Reshape may be computed at run time: then it is what inference says of the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from bnfold.frontends.onnx import walking
from bnfold.frontends.onnx.lenses import Looker, integer
from bnfold.graph import Passage, Reason
from bnfold.travel import LARGEST_RUN, Concat, Index, Permute, Reshape, Same, Shape, Split

OPEN_END = 2**31 - 1
FROM_SIZES = ("Shape", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast")


def integers(node: ir.Node, look: Looker, index: int, name: str) -> tuple[int, ...] | None:
    """The whole numbers of an attribute, or of an input that is constant; None where neither is there."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    value = node.inputs[index] if len(node.inputs) > index else None
    known = None if value is None else look.constant(value)
    return None if known is None else known.integers()


def counted(axes: Sequence[int], rank: int) -> tuple[int, ...] | None:
    """The axes, counted from the front; None where there is no such axis, or the same one twice."""
    found = {axis + rank if axis < 0 else axis for axis in axes}
    valid = len(found) == len(axes) and all(0 <= axis < rank for axis in found)
    return tuple(axis + rank if axis < 0 else axis for axis in axes) if valid else None


def shape_of(node: ir.Node, look: Looker) -> Shape | None:
    """The sizes of the first input, with a symbol for each that has no name; None where the rank is not known."""
    value = node.inputs[0]
    shape = None if value is None else look.shape(value)
    return None if shape is None else tuple(f"?{axis}" if size is None else size for axis, size in enumerate(shape))


def shapes_of(node: ir.Node, look: Looker) -> tuple[Shape | None, ...]:
    """The sizes of all inputs."""
    return tuple(None if value is None else look.shape(value) for value in node.inputs)


def changed(before: Shape, after: Shape | None) -> frozenset[int]:
    """The axes that may have another size afterwards; all of them where the rank changes."""
    if after is None or len(after) != len(before):
        return frozenset(range(max(len(before), len(after or ()))))
    return frozenset(axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)


def transpose(node: ir.Node, look: Looker) -> Passage | Reason:
    """Transpose; without a permutation it reverses the axes."""
    if "perm" in node.attributes:
        order = tuple(node.attributes["perm"].as_ints())
        return Permute(order) if sorted(order) == list(range(len(order))) else Reason.UNSUPPORTED_ATTRIBUTE
    shape = shape_of(node, look)
    return Reason.AXIS_UNKNOWN if shape is None else Permute(tuple(reversed(range(len(shape)))))


def reshape(node: ir.Node, look: Looker) -> Passage:
    """Reshape: 0 copies a size unless `allowzero`, −1 is what is left. Of unknown rank, only one number passes."""
    before, target = shape_of(node, look) or (), _target(node, look)
    if target is None:
        made = look.shape(node.outputs[0]) or ()
        return Reshape(before, solved(before, made), made)
    keeps = not integer(node, "allowzero", 0)
    copied = (*before, *[None] * len(target))
    given = tuple(copied[axis] if size == 0 and keeps else size for axis, size in enumerate(target))
    return Reshape(before, solved(before, tuple(None if size == -1 else size for size in given)), named(given))


def named(sizes: Shape) -> Shape:
    """The sizes without the symbols that stand for sizes without a name, which are those of one value alone."""
    return tuple(None if isinstance(size, str) and size.startswith("?") else size for size in sizes)


def _target(node: ir.Node, look: Looker) -> Shape | None:
    """What a Reshape is asked for: numbers, and names of sizes where it is computed from shapes at run time."""
    if (known := integers(node, look, 1, "shape")) is not None:
        return known
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return None if value is None else _sizes_in(value, look, farther=32)


def _sizes_in(value: ir.Value, look: Looker, farther: int) -> Shape | None:
    """The whole numbers of a vector (or of a single number) that exporters compute from shapes; None if not these."""
    known, node = look.constant(value), value.producer()
    if known is not None:
        return known.integers()
    if node is None or not walking.is_standard(node, *FROM_SIZES) or not farther or None in node.inputs:
        return None
    data, *others = [value for value in node.inputs if value is not None]
    if node.op_type == "Shape":
        shape = look.shape(data)
        bounds = [node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end")]
        return None if shape is None else shape[slice(*bounds)]
    parts = [_sizes_in(part, look, farther - 1) for part in ([data, *others] if node.op_type == "Concat" else [data])]
    sizes = tuple(size for part in parts if part is not None for size in part)
    if None in parts:
        return None
    if node.op_type in ("Gather", "Slice"):
        return _picked(node, sizes, look)
    return sizes


def _picked(node: ir.Node, sizes: Shape, look: Looker) -> Shape | None:
    """The sizes that a Gather or a Slice takes out of a vector of them."""
    if node.op_type == "Gather":
        wanted = integers(node, look, 1, "indices")
        valid = wanted is not None and all(-len(sizes) <= index < len(sizes) for index in wanted)
        return tuple(sizes[index] for index in wanted) if valid and wanted is not None else None
    bounds = [integers(node, look, index, name) for index, name in ((1, "starts"), (2, "ends"))]
    steps = integers(node, look, 4, "steps") or (1,)
    if None in bounds or any(len(bound) != 1 for bound in bounds if bound is not None) or 0 in steps:
        return None
    start, end = (bound[0] for bound in bounds if bound is not None)
    return sizes[start : end : steps[0]]


def solved(before: Shape, after: Shape) -> Shape:
    """`after`, with the one size that is not known computed from all others."""
    given = Counter(size for size in before if isinstance(size, str))
    after = tuple(size if isinstance(size, int) or size in given else None for size in after)
    if after.count(None) != 1:
        return after
    given.subtract(size for size in after if isinstance(size, str))
    number, divisor = (prod(size for size in sizes if isinstance(size, int)) for sizes in (before, after))
    if any(count < 0 for count in given.values()) or not divisor or number % divisor:
        return after
    left = list(given.elements())
    missing = left[0] if len(left) == 1 and number == divisor else None
    return tuple((missing if left else number // divisor) if size is None else size for size in after)


def flatten(node: ir.Node, look: Looker) -> Passage | Reason:
    """Flatten, to two axes."""
    before, axis = shape_of(node, look), integer(node, "axis", 1)
    if before is None or not -len(before) <= axis <= len(before):
        return Reason.AXIS_UNKNOWN
    axis = axis + len(before) if axis < 0 else axis
    after = solved(before[:axis], (None,)) + solved(before[axis:], (None,))
    return Reshape(before, after, named(after))


def squeeze(node: ir.Node, look: Looker) -> Passage | Reason:
    """Squeeze: the axes it names have size 1, or the model fails; without names, the sizes decide."""
    before, given = shape_of(node, look), integers(node, look, 1, "axes")
    if before is None:
        return Reason.AXIS_UNKNOWN
    if given is None and not all(isinstance(size, int) for size in before):
        return Reason.AXIS_UNKNOWN
    gone = counted([axis for axis, size in enumerate(before) if size == 1] if given is None else given, len(before))
    if gone is None:
        return Reason.AXIS_UNKNOWN
    ones = tuple(1 if axis in gone else size for axis, size in enumerate(before))
    after = tuple(size for axis, size in enumerate(ones) if axis not in gone)
    return Reshape(ones, after, named(after), demands=ones != before)


def unsqueeze(node: ir.Node, look: Looker) -> Passage | Reason:
    """Unsqueeze: axes are counted in the result."""
    before, given = shape_of(node, look), integers(node, look, 1, "axes")
    new = None if before is None or given is None else counted(given, len(before) + len(given))
    if before is None or new is None:
        return Reason.AXIS_UNKNOWN
    sizes = iter(before)
    rank = len(before) + len(new)
    after = tuple(1 if axis in new else next(sizes) for axis in range(rank))
    return Reshape(before, after, named(after))


def expand(node: ir.Node, look: Looker) -> Passage | Reason:
    """Expand, as far as it keeps the rank."""
    before, after = shape_of(node, look), look.shape(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return Reason.NOT_LINEAR
    return Same(changed(before, after))


def cut(node: ir.Node, look: Looker) -> Passage | Reason:
    """Slice; along several axes it is known only that the others keep their channels."""
    shape = shape_of(node, look)
    starts, ends = integers(node, look, 1, "starts"), integers(node, look, 2, "ends")
    if shape is None:
        return Reason.AXIS_UNKNOWN
    if starts is None or ends is None:
        return Reason.UNSUPPORTED_ATTRIBUTE
    given = integers(node, look, 3, "axes")
    axes = counted(range(len(starts)) if given is None else given, len(shape))
    steps = integers(node, look, 4, "steps") or (1,) * len(starts)
    if axes is None or not len(axes) == len(starts) == len(ends) == len(steps) or 0 in steps:
        return Reason.UNSUPPORTED_ATTRIBUTE
    bounds = map(slice, starts, ends, steps)
    cuts = {axis: bound for axis, bound in zip(axes, bounds, strict=True) if not _takes_all(bound, shape[axis])}
    if len(cuts) != 1:
        return Same(frozenset(cuts))
    ((axis, bound),) = cuts.items()
    size = shape[axis]
    return _pieces(axis, size, [np.arange(size)[bound]] if _is_walkable(size) else None, 1)


def _takes_all(bound: slice, size: int | str | None) -> bool:
    end = size if isinstance(size, int) else OPEN_END
    return bool(bound.start == 0 and bound.step == 1 and bound.stop >= end)


def _is_walkable(size: int | str | None) -> TypeGuard[int]:
    """Whether every index of an axis may be written down; one that is longer has no channels."""
    return isinstance(size, int) and size <= LARGEST_RUN


def _pieces(
    axis: int, size: int | str | None, picks: Sequence[Index] | None, outputs: int, dropped: bool = False
) -> Split:
    """A `Split`; of an axis whose size is not known, nothing is known."""
    if not isinstance(size, int) or picks is None:
        return Split(axis, None, None, outputs, dropped)
    return Split(axis, size, tuple(picks), outputs, dropped)


def split(node: ir.Node, look: Looker) -> Passage | Reason:
    """Split, into pieces of given sizes or equal ones, of which the last may be smaller."""
    shape, outputs = shape_of(node, look), len(node.outputs)
    axes = None if shape is None else counted([integer(node, "axis", 0)], len(shape))
    if shape is None or axes is None:
        return Reason.AXIS_UNKNOWN
    sizes, size = integers(node, look, 1, "split"), shape[axes[0]]
    if sizes is None and isinstance(size, int):
        part = -(-size // outputs)
        sizes = (part,) * (outputs - 1) + (size - part * (outputs - 1),)
    if sizes is None:
        return _pieces(axes[0], None, None, outputs)
    if len(sizes) != outputs or min(sizes) < 0:
        return Reason.UNSUPPORTED_ATTRIBUTE
    if not _is_walkable(total := sum(sizes)):
        return _pieces(axes[0], None, None, outputs)
    return _pieces(axes[0], total, np.split(np.arange(total), np.cumsum(sizes)[:-1]), outputs)


def gather(node: ir.Node, look: Looker) -> Passage | Reason:
    """Gather by constant indices: a list picks channels, a single one drops the axis."""
    shape, indices = shape_of(node, look), None if node.inputs[1] is None else look.constant(node.inputs[1])
    axes = None if shape is None else counted([integer(node, "axis", 0)], len(shape))
    numbers = None if indices is None else indices.integers()
    if shape is None or axes is None or indices is None or numbers is None:
        return Reason.AXIS_UNKNOWN
    if len(indices.shape) > 1:
        return Reason.NOT_LINEAR
    size, dropped = shape[axes[0]], not indices.shape
    wanted = np.asarray(numbers, dtype=np.intp)
    if not _is_walkable(size) or np.any((wanted < -size) | (wanted >= size)):
        return _pieces(axes[0], None, None, 1, dropped)
    return _pieces(axes[0], size, [np.arange(size)[wanted]], 1, dropped)


def concat(node: ir.Node, look: Looker) -> Passage | Reason:
    """Concat."""
    shapes = shapes_of(node, look)
    ranks = {len(shape) for shape in shapes if shape is not None}
    axes = counted([integer(node, "axis", 0)], ranks.pop()) if len(ranks) == 1 else None
    if axes is None:
        return Reason.AXIS_UNKNOWN
    return Concat(axes[0], tuple(None if shape is None else shape[axes[0]] for shape in shapes))

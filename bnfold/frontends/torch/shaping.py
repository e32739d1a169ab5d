"""Operators that only move numbers: shapes, the order of axes, joining, and taking pieces.

Sizes are facts or None; they decide nothing that a missing one could decide otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from bnfold.frontends.torch.calls import words
from bnfold.frontends.torch.sight import Lens, Sight, from_front, inputs_of
from bnfold.graph import Passage, Reason
from bnfold.travel import LARGEST_RUN, Concat, Permute, Reshape, Same, Split


def _permute(sight: Sight) -> Passage | Reason:
    order = sight.axes(sight.call.get("dims"))
    return Reason.AXIS_UNKNOWN if order is None else Permute(order)


def _transpose(sight: Sight) -> Passage | Reason:
    one, other = sight.axis("dim0"), sight.axis("dim1")
    return _swap(sight.rank, one, other)


def _swap(rank: int | None, one: int | None, other: int | None) -> Passage | Reason:
    if rank is None or one is None or other is None:
        return Reason.AXIS_UNKNOWN
    order = list(range(rank))
    order[one], order[other] = order[other], order[one]
    return Permute(tuple(order))


def _matrix_transpose(sight: Sight) -> Passage | Reason:
    rank = sight.rank
    if rank is None or rank < 2 or (rank > 2 and sight.call.operator != "mT"):
        return Reason.AXIS_UNKNOWN
    return _swap(rank, rank - 1, rank - 2)


def _reshape(sight: Sight) -> Passage | Reason:
    """Shapes that are not known are empty: no axis is followed through them."""
    sizes = sight.call.get("size", ())
    if any(isinstance(each, torch.dtype) for each in (sizes if isinstance(sizes, (tuple, list)) else (sizes,))):
        return Reason.NOT_LINEAR
    before, after = sight.before or (), sight.after or ()
    asked = after if sight.facts.proved else ()
    return Reshape(before, after, asked, sight.call.get("input"), sight.call.get("other"))


def _squeeze(sight: Sight) -> Passage | Reason:
    """An axis that has one index in some runs only would go in these alone."""
    axes = sight.axes(sight.call.get("dim"))
    if axes is None or any(sight.size(axis) is None for axis in axes):
        return Reason.AXIS_UNKNOWN
    return _reshape(sight)


def _expand(sight: Sight) -> Passage | Reason:
    before = sight.before
    known = before is not None and None not in before
    return Same() if known and before == sight.after else Reason.NOT_LINEAR


def _concat(sight: Sight) -> Passage | Reason:
    shapes = [sight.facts.shape(value) for value in inputs_of(sight.call)]
    ranks = {len(shape) for shape in shapes if shape is not None}
    axis = from_front(sight.call.get("dim", 0), ranks.pop() if len(ranks) == 1 else None)
    if axis is None or ranks or len(shapes) != len(sight.call.get("tensors")):
        return Reason.AXIS_UNKNOWN
    return Concat(axis, tuple(None if shape is None else shape[axis] for shape in shapes))


def _pieces(sight: Sight) -> Passage | Reason:
    """`split`, `chunk` and `unbind`: each item that is taken has its run of channels."""
    call, axis = sight.call, sight.axis("dim", 0)
    items = sight.items or ()
    if axis is None:
        return Reason.AXIS_UNKNOWN
    size, dropped = sight.size(axis), call.operator == "unbind"
    picks = (
        None
        if size is None or size > LARGEST_RUN
        else _runs(1 if dropped else call.get("sizes"), call.get("chunks"), size)
    )
    if picks is None:
        return Split(axis, None, None, len(items), dropped) if min(items, default=0) >= 0 else Reason.AXIS_UNKNOWN
    if not all(-len(picks) <= item < len(picks) for item in items):
        return Reason.NOT_LINEAR
    return Split(axis, size, tuple(picks[item] for item in items), len(items), dropped)


def _runs(sizes: Any, chunks: Any, size: int) -> list[np.ndarray[Any, Any]] | None:
    """The indices of each piece of an axis."""
    if size > LARGEST_RUN:
        return None
    if isinstance(chunks, int):
        sizes = -(-size // chunks)
    if isinstance(sizes, int):
        return [np.arange(start, min(start + sizes, size)) for start in range(0, size, sizes or size)]
    if not isinstance(sizes, (tuple, list)) or not all(isinstance(each, int) for each in sizes):
        return None
    ends = np.cumsum(sizes)
    return [np.arange(end - each, end) for end, each in zip(ends, sizes, strict=True)] if ends[-1] == size else None


def _picked(sight: Sight, axis: int | None, index: Any) -> Passage | Reason:
    """One piece: what a slice, a number or a list of numbers picks along one axis; None where it is not known."""
    if axis is None:
        return Reason.AXIS_UNKNOWN
    size, dropped = sight.size(axis), isinstance(index, int)
    if size is None or size > LARGEST_RUN or index is None:
        return Split(axis, None, None, 1, dropped)
    if dropped and not -size <= index < size:
        return Reason.NOT_LINEAR
    return Split(axis, size, (np.atleast_1d(np.arange(size)[index]),), 1, dropped)


def _slice(sight: Sight) -> Passage | Reason:
    bounds = [sight.call.get(name) for name in ("start", "end", "step")]
    known = not any(isinstance(bound, fx.Node) for bound in bounds)
    return _picked(sight, sight.axis("dim", 0), slice(*bounds) if known else None)


def _narrow(sight: Sight) -> Passage | Reason:
    start, length, axis = sight.call.get("start"), sight.call.get("length"), sight.axis()
    if not isinstance(start, int) or not isinstance(length, int) or axis is None:
        return Reason.AXIS_UNKNOWN
    size = sight.size(axis)
    first = start if start >= 0 or size is None else start + size
    return _picked(sight, axis, slice(first, first + length) if size is not None else None)


def _select(sight: Sight) -> Passage | Reason:
    index, axis = sight.call.get("index"), sight.axis()
    if axis is None:
        return Reason.AXIS_UNKNOWN
    return _picked(sight, axis, index) if isinstance(index, int) else Split(axis, None, None, 1, dropped=True)


def _index_select(sight: Sight) -> Passage | Reason:
    return _picked(sight, sight.axis(), sight.integers(sight.call.get("index")))


def _index(sight: Sight) -> Passage | Reason:
    """`x[:, indices]` with one list of numbers."""
    indices = sight.call.get("indices")
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    numbers = sight.integers(given[0][1]) if len(given) == 1 else None
    return Reason.NOT_LINEAR if numbers is None else _picked(sight, given[0][0], numbers)


def _getitem(sight: Sight) -> Passage | Reason:
    """`x[:, 1:3, ..., None]` in Python's own words."""
    index, rank = sight.call.get("index"), sight.rank
    parts = list(index) if isinstance(index, tuple) else [index]
    if rank is None:
        return Reason.AXIS_UNKNOWN
    whole = slice(None)
    if Ellipsis in [part for part in parts if isinstance(part, type(Ellipsis))]:
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        filled = rank - sum(part is not None and part is not Ellipsis for part in parts)
        parts[place : place + 1] = [whole] * filled
    if parts.count(None):
        others = [part for part in parts if part is not None]
        return _reshape(sight) if all(part == whole for part in others) else Reason.NOT_LINEAR
    given = [(axis, part) for axis, part in enumerate(parts) if not (isinstance(part, slice) and part == whole)]
    if not all(_is_plain(part) for _, part in given):
        return _gathered(sight, given)
    if len(given) == 1:
        return _picked(sight, *given[0])
    dropped = {axis for axis, part in given if isinstance(part, int)}
    kept = tuple(axis for axis in range(rank) if axis not in dropped) if dropped else None
    return Same(mixed=frozenset(axis for axis, _ in given), kept=kept)


def _is_plain(part: Any) -> bool:
    if isinstance(part, slice):
        return all(bound is None or isinstance(bound, int) for bound in (part.start, part.stop, part.step))
    return isinstance(part, int) and not isinstance(part, bool)


def _gathered(sight: Sight, given: Sequence[tuple[int, Any]]) -> Passage | Reason:
    numbers = sight.integers(given[0][1]) if len(given) == 1 else None
    return Reason.NOT_LINEAR if numbers is None else _picked(sight, given[0][0], numbers)


TUPLES = frozenset({"split", "split_with_sizes", "chunk", "unbind"})
"""Operators whose results are tuples of pieces."""

MOVERS = words(
    "permute transpose swapaxes swapdims t mT numpy_T squeeze unsqueeze flatten unflatten"
    " view _unsafe_view reshape view_as reshape_as"
)
"""Operators that may be a `Permute` or a `Reshape`."""

SHAPING: dict[str, Lens] = {
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "mT", "numpy_T"), _matrix_transpose),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "unsqueeze"), _reshape
    ),
    "squeeze": _squeeze,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys(TUPLES, _pieces),
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    "getitem": _getitem,
}

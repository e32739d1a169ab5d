"""Which operators an affine may cross: a table from an operator's name to the lens that makes its `Passage`.

`inputs_of(call)` are the values that the operator maps; `passage_of(sight)` says how, or for which `Reason` it is
opaque. Sizes are facts or None; they decide nothing that a missing one could decide otherwise.

**A lens refuses any argument that its signature does not name.** To add an operator: its signature in `spelling.py` and
one line in `LENSES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from bnfold.frontends.torch.calls import Call
from bnfold.frontends.torch.constants import FLOATS
from bnfold.frontends.torch.shapes import Facts
from bnfold.frontends.torch.spelling import PARAMETERS
from bnfold.graph import Passage, Reason
from bnfold.travel import Concat, Gate, Permute, Reshape, Same, Shape, Split, Sum

Integers = Callable[[Any], list[int] | None]


@dataclass(frozen=True)
class Sight:
    """One call with all that is known: `items` are the indices that are taken from its result, where it is a tuple."""

    call: Call
    node: fx.Node
    facts: Facts
    items: tuple[int, ...] | None
    integers: Integers

    @property
    def before(self) -> Shape | None:
        return self.facts.shape(self.call.get("input"))

    @property
    def after(self) -> Shape | None:
        return self.facts.shape(self.node)

    @property
    def rank(self) -> int | None:
        return None if self.before is None else len(self.before)

    def size(self, axis: int) -> int | None:
        found = None if self.before is None else self.before[axis]
        return found if isinstance(found, int) else None

    def axis(self, name: str = "dim", default: int | None = None) -> int | None:
        """An axis argument counted from the front, if that is known."""
        return _from_front(self.call.get(name, default), self.rank)

    def axes(self, given: Any) -> tuple[int, ...] | None:
        """Axes counted from the front; all where none is given."""
        if self.rank is None:
            return None
        if given is None or given in ((), []):
            return tuple(range(self.rank))
        found = [_from_front(axis, self.rank) for axis in (given if isinstance(given, (tuple, list)) else [given])]
        return None if None in found else tuple(axis for axis in found if axis is not None)


Lens = Callable[[Sight], Passage | Reason]


def inputs_of(call: Call) -> list[fx.Node]:
    """The values that an operator maps, by port."""
    given: tuple[Any, ...]
    if call.operator in _TERMS | _FACTORS | _PRODUCTS:
        given = (call.get("input"), call.get("mat2" if call.operator in ("bmm", "mm") else "other"))
    elif "tensors" in call.arguments:
        given = tuple(call.get("tensors")) if isinstance(call.get("tensors"), (tuple, list)) else ()
    else:
        given = (call.get("input"),)
    return [value for value in given if isinstance(value, fx.Node)]


def makes_tuple(call: Call) -> bool:
    """Whether the operator's result is a tuple, of which the first or each item is a value."""
    indices = bool(call.get("return_indices", False)) or call.operator.endswith("_with_indices")
    return call.operator in _TUPLES or indices or (call.operator == "max" and call.get("dim") is not None)


def passage_of(sight: Sight) -> Passage | Reason:
    """How an affine crosses the call, or why it does not."""
    call = sight.call
    known = {parameter.removeprefix("*") for parameter in PARAMETERS[call.operator]}
    if set(call.arguments) - known:
        return Reason.UNSUPPORTED_ATTRIBUTE
    lens = LENSES.get(call.operator)
    if lens is None or not inputs_of(call):
        return Reason.NOT_LINEAR
    if makes_tuple(call) and (sight.items is None or not (call.operator in _TUPLES or set(sight.items) <= {0})):
        return Reason.NOT_LINEAR
    return lens(sight)


def _from_front(axis: Any, rank: int | None) -> int | None:
    if not isinstance(axis, int) or isinstance(axis, bool) or (rank is None and axis < 0):
        return None
    if rank is None:
        return axis
    return axis % rank if -rank <= axis < rank else None


def _identity(sight: Sight) -> Passage:
    return Same()


def _dropout(sight: Sight) -> Passage | Reason:
    return Same() if sight.call.get("training", True) is False else Reason.NOT_LINEAR


def _cast(sight: Sight) -> Passage | Reason:
    types = (sight.facts.dtype(sight.call.get("input")), sight.facts.dtype(sight.node))
    return Same() if all(dtype in FLOATS for dtype in types) else Reason.NOT_LINEAR


def _rectifier(sight: Sight) -> Passage:
    return Same(fixes=(0.0,), positive=True)


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
    return Reshape(sight.before or (), sight.after or ())


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
    axis = _from_front(sight.call.get("dim", 0), ranks.pop() if len(ranks) == 1 else None)
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
    picks = None if size is None else _runs(1 if dropped else call.get("sizes"), call.get("chunks"), size)
    if picks is None:
        return Split(axis, None, None, len(items), dropped) if min(items, default=0) >= 0 else Reason.AXIS_UNKNOWN
    if not all(-len(picks) <= item < len(picks) for item in items):
        return Reason.NOT_LINEAR
    return Split(axis, size, tuple(picks[item] for item in items), len(items), dropped)


def _runs(sizes: Any, chunks: Any, size: int) -> list[np.ndarray[Any, Any]] | None:
    """The indices of each piece of an axis."""
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
    if size is None or index is None:
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


def _reduction(**options: Any) -> Lens:
    """Means, sums and maxima over axes."""

    def lens(sight: Sight) -> Passage | Reason:
        axes, keeps = sight.axes(sight.call.get("dim")), sight.call.get("keepdim", False)
        if axes is None or sight.rank is None or not isinstance(keeps, bool):
            return Reason.AXIS_UNKNOWN
        if sight.call.get("dtype") not in (None, *FLOATS):
            return Reason.NOT_LINEAR
        kept = None if keeps else tuple(axis for axis in range(sight.rank) if axis not in axes)
        return Same(mixed=frozenset(axes), kept=kept, **options)

    return lens


def _spatial(sight: Sight) -> frozenset[int] | None:
    """The last axes, as many as the operator's name says, or all behind the second."""
    digits = [int(letter) for letter in sight.call.operator if letter.isdigit()]
    rank = sight.rank
    if rank is None or rank < 3 - (digits != []):
        return None
    return frozenset(range(rank - digits[-1] if digits else 2, rank))


def _max_pool(sight: Sight) -> Passage | Reason:
    mixed = _spatial(sight)
    if mixed is None:
        return Reason.AXIS_UNKNOWN
    return Same(mixed=mixed, positive=True, because=Reason.MIXED_SIGN_MAXPOOL)


def _mean_pool(sight: Sight) -> Passage | Reason:
    """Weights sum to one unless zeros are counted or the divisor is another; what `ceil_mode` adds is not counted."""
    mixed, call = _spatial(sight), sight.call
    if mixed is None:
        return Reason.AXIS_UNKNOWN
    if call.get("divisor_override") is not None:
        return Same(mixed=mixed, fixes=(0.0,))
    padding = call.get("padding", 0)
    pads = any(each != 0 for each in (padding if isinstance(padding, (tuple, list)) else (padding,)))
    counts = pads and call.get("count_include_pad", True) is not False
    return Same(mixed=mixed, fixes=(0.0,), because=Reason.PADDED_BORDER) if counts else Same(mixed=mixed)


def _resize(sight: Sight) -> Passage | Reason:
    mixed = _spatial(sight)
    return Reason.AXIS_UNKNOWN if mixed is None else Same(mixed=mixed)


def _pad(sight: Sight) -> Passage | Reason:
    call, rank = sight.call, sight.rank
    amounts = call.get("pad")
    if rank is None or not isinstance(amounts, (tuple, list)) or len(amounts) > 2 * rank:
        return Reason.AXIS_UNKNOWN
    padded = frozenset(rank - 1 - place // 2 for place, amount in enumerate(amounts) if amount != 0)
    if call.operator not in ("pad", "constant_pad_nd") or call.get("mode", "constant") in _COPIES:
        return Same(mixed=padded)
    value = call.get("value", 0)
    if call.get("mode", "constant") != "constant" or isinstance(value, fx.Node):
        return Reason.NOT_LINEAR
    return Same(mixed=padded, fixes=(float(value or 0),), because=Reason.PADDED_BORDER)


def _sum(sight: Sight) -> Passage | Reason:
    call, values = sight.call, inputs_of(sight.call)
    if len(values) != 2:
        return Reason.NOT_LINEAR
    if call.get("alpha", 1) != 1:
        return Reason.UNSUPPORTED_ATTRIBUTE
    signs = {"add": (1, 1), "rsub": (-1, 1)}.get(call.operator, (1, -1))
    return Sum(tuple(sight.facts.shape(value) for value in values), signs)


def _gate(sight: Sight) -> Passage | Reason:
    values = inputs_of(sight.call)
    if len(values) != 2:
        return Reason.NOT_LINEAR
    takes = (0, 1) if sight.call.operator in ("mul", "multiply") else (0,)
    return Gate(tuple(sight.facts.shape(value) for value in values), takes)


def _matrix_product(sight: Sight) -> Passage | Reason:
    return Gate((None, None), (0, 1), uniform=True) if len(inputs_of(sight.call)) == 2 else Reason.NOT_LINEAR


_COPIES = ("reflect", "replicate", "circular")
_TUPLES = frozenset({"split", "split_with_sizes", "chunk", "unbind"})
_TERMS = frozenset({"add", "sub", "subtract", "rsub"})
_FACTORS = frozenset({"mul", "multiply", "div", "true_divide", "truediv"})
_PRODUCTS = frozenset({"matmul", "bmm", "mm"})
_RESIZES = frozenset(name for name in PARAMETERS if "upsample" in name or name == "interpolate")
_PADS = frozenset(name for name in PARAMETERS if name == "pad" or "_pad" in name)

LENSES: dict[str, Lens] = {
    **dict.fromkeys(("identity", "detach", "alias", "contiguous", "clone"), _identity),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("to", "_to_copy", "float", "half", "double", "bfloat16"), _cast),
    **dict.fromkeys(("relu", "leaky_relu", "prelu"), _rectifier),
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "mT", "numpy_T"), _matrix_transpose),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "unsqueeze"), _reshape
    ),
    "squeeze": _squeeze,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    **dict.fromkeys(_TUPLES, _pieces),
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    "getitem": _getitem,
    "mean": _reduction(),
    "sum": _reduction(fixes=(0.0,)),
    **dict.fromkeys(("amax", "max"), _reduction(positive=True, because=Reason.MIXED_SIGN_MAXPOOL)),
    **dict.fromkeys((name for name in PARAMETERS if "max_pool" in name), _max_pool),
    **dict.fromkeys((name for name in PARAMETERS if "avg_pool" in name), _mean_pool),
    **dict.fromkeys(_RESIZES, _resize),
    **dict.fromkeys(_PADS, _pad),
    **dict.fromkeys(_TERMS, _sum),
    **dict.fromkeys(_FACTORS, _gate),
    **dict.fromkeys(_PRODUCTS, _matrix_product),
}

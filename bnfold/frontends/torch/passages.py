"""Which operators an affine may cross: a table from an operator's name to the lens that makes its `Passage`.

`passage_of(sight)` says how, or for which `Reason` the operator is opaque. Sizes are facts or None; they decide nothing
that a missing one could decide otherwise. Operators that only move numbers have their lenses in `shaping.py`.

**A lens refuses any argument that its signature does not name.** To add an operator: its signature in `spelling.py` and
one line in `LENSES` or `SHAPING`.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from bnfold.frontends.torch.calls import Call
from bnfold.frontends.torch.constants import FLOATS
from bnfold.frontends.torch.shaping import SHAPING, TUPLES
from bnfold.frontends.torch.sight import FACTORS, PRODUCTS, TERMS, Lens, Sight, inputs_of
from bnfold.frontends.torch.spelling import PARAMETERS
from bnfold.graph import Passage, Reason
from bnfold.travel import Gate, Same, Sum


def makes_tuple(call: Call) -> bool:
    """Whether the operator's result is a tuple, of which the first or each item is a value."""
    indices = bool(call.get("return_indices", False)) or call.operator.endswith("_with_indices")
    return call.operator in TUPLES or indices or (call.operator == "max" and call.get("dim") is not None)


def passage_of(sight: Sight) -> Passage | Reason:
    """How an affine crosses the call, or why it does not."""
    call = sight.call
    known = {parameter.removeprefix("*") for parameter in PARAMETERS[call.operator]}
    if set(call.arguments) - known:
        return Reason.UNSUPPORTED_ATTRIBUTE
    lens = LENSES.get(call.operator)
    if lens is None or not inputs_of(call):
        return Reason.NOT_LINEAR
    if makes_tuple(call) and (sight.items is None or not (call.operator in TUPLES or set(sight.items) <= {0})):
        return Reason.NOT_LINEAR
    return lens(sight)


def _identity(sight: Sight) -> Passage:
    return Same(idle=True)


def _dropout(sight: Sight) -> Passage | Reason:
    return Same(idle=True) if sight.call.get("training", True) is False else Reason.NOT_LINEAR


def _cast(sight: Sight) -> Passage | Reason:
    types = (sight.facts.dtype(sight.call.get("input")), sight.facts.dtype(sight.node))
    return Same() if all(dtype in FLOATS for dtype in types) else Reason.NOT_LINEAR


def _rectifier(sight: Sight) -> Passage:
    return Same(fixes=(0.0,), positive=True)


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
_RESIZES = frozenset(name for name in PARAMETERS if "upsample" in name or name == "interpolate")
_PADS = frozenset(name for name in PARAMETERS if name == "pad" or "_pad" in name)

LENSES: dict[str, Lens] = {
    **dict.fromkeys(("identity", "detach", "alias", "contiguous", "clone"), _identity),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"), _dropout),
    **dict.fromkeys(("to", "_to_copy", "float", "half", "double", "bfloat16"), _cast),
    **dict.fromkeys(("relu", "leaky_relu", "prelu"), _rectifier),
    **SHAPING,
    "mean": _reduction(),
    "sum": _reduction(fixes=(0.0,)),
    **dict.fromkeys(("amax", "max"), _reduction(positive=True, because=Reason.MIXED_SIGN_MAXPOOL)),
    **dict.fromkeys((name for name in PARAMETERS if "max_pool" in name), _max_pool),
    **dict.fromkeys((name for name in PARAMETERS if "avg_pool" in name), _mean_pool),
    **dict.fromkeys(_RESIZES, _resize),
    **dict.fromkeys(_PADS, _pad),
    **dict.fromkeys(TERMS, _sum),
    **dict.fromkeys(FACTORS, _gate),
    **dict.fromkeys(PRODUCTS, _matrix_product),
}

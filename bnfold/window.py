"""Where the taps of a convolution sit, so that two of them can be added or composed.

Along each spatial axis tap `i` of `kernel` sits at the offset `i · dilation − before`, and the window moves by
`stride`. Output `j` sees the input at `j · stride + offset`, and there are `(size − 1 + excess) // stride + 1` outputs:
two operators with one stride and one excess make outputs of one size from every input. A matrix product is a window of
no axes, with one tap.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """One entry per spatial axis; `before` and `after` count the zeros that are added at the border.

    `fixed` is None unless something else decides what a tap sees (a transposed convolution, a border that is not zero):
    such windows are alike or have nothing in common.
    """

    kernel: Sizes = ()
    stride: Sizes = ()
    dilation: Sizes = ()
    before: Sizes = ()
    after: Sizes = ()
    fixed: Hashable = None

    @classmethod
    def point(cls, axes: int) -> Window:
        """One tap that sees what is at its own place."""
        ones, zeros = (1,) * axes, (0,) * axes
        return cls(ones, ones, ones, zeros, zeros)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def excess(self) -> Sizes:
        """How many more places than the input has a window may start from."""
        spans = zip(self.before, self.after, self.dilation, self.kernel, strict=True)
        return tuple(before + after - dilation * (taps - 1) for before, after, dilation, taps in spans)

    @property
    def is_point(self) -> bool:
        """Whether it has one tap and adds no border; it may skip places."""
        return self.taps == 1 and self.fixed is None and not any(self.before + self.after)

    @property
    def bordered(self) -> bool:
        return any(self.before + self.after)

    def union(self, other: Window) -> Window | None:
        """The smallest window that has the taps of both; None where they do not make outputs of one size."""
        if self == other:
            return self
        if self.fixed is not None or other.fixed is not None or len(self.kernel) != len(other.kernel):
            return None
        if (self.stride, self.excess) != (other.stride, other.excess):
            return None
        axes = [_union(self._axis(i), other._axis(i)) for i in range(len(self.kernel))]
        before, after, dilation, kernel = zip(*axes, strict=True) if axes else ((), (), (), ())
        after = tuple(excess + last for excess, last in zip(self.excess, after, strict=True))
        if any(size < 0 for size in before + after):
            return None
        return Window(kernel, self.stride, dilation, before, after)

    def behind(self, first: Window) -> Window | None:
        """The window of this one applied to the result of `first`, where one of them has a single tap."""
        if self.fixed is not None or first.fixed is not None or len(self.kernel) != len(first.kernel):
            return None
        stride = tuple(ours * theirs for ours, theirs in zip(self.stride, first.stride, strict=True))
        if self.is_point:
            return Window(first.kernel, stride, first.dilation, first.before, first.after)
        if not first.is_point:
            return None
        spread = [
            tuple(size * step for size, step in zip(sizes, first.stride, strict=True))
            for sizes in (self.dilation, self.before, self.after)
        ]
        return Window(self.kernel, stride, *spread)

    def places(self, within: Window) -> NDArray[np.intp]:
        """The number of each of its taps among those of a window that has them all."""
        grid = np.zeros((1,), dtype=np.intp)
        for i in range(len(self.kernel)):
            first, step, count, _ = self._axis(i)
            start, stride, total, _ = within._axis(i)
            along = (np.arange(count) * step + first - start) // stride
            grid = (grid[:, None] * total + along).reshape(-1)
        return grid

    def _axis(self, axis: int) -> tuple[int, int, int, int]:
        """Of one axis: the offset of the first tap, the step to the next, the number of taps, the last offset."""
        count, step, first = self.kernel[axis], self.dilation[axis], -self.before[axis]
        return first, step, count, first + step * (count - 1)


def _union(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Of one axis: the offset in front of the taps of both, the last offset, their common step, their number."""
    first, last = min(one[0], other[0]), max(one[3], other[3])
    steps = [step for _, step, count, _ in (one, other) if count > 1]
    step = gcd(*steps, one[0] - other[0]) or 1
    return -first, last, step, (last - first) // step + 1

"""The numbers at which a finding is made: the checks compare with them, and the text about each finding names them."""

from __future__ import annotations

FLOAT16_LARGEST = 65504.0

USUAL_EPSILON = (1e-7, 1e-2)

NEGLIGIBLE = 0.1
"""A variance below this part of epsilon: with epsilon alone the scale would be at most 5 % larger."""

OUTLYING = 1e-6
"""Or so many times below the median channel's: its values spread a thousand times less than those of its neighbours."""

ALL_NOISE = 1e-3
"""A variance of which less than this part is left without a dropout is said to be all noise."""

SMALL_WEIGHTS = 0.1
"""Weights so many times the median channel's are said to be behind a variance that is near zero: it is a hundredth."""

DEVIATIONS = 8.0
"""A ReLU behind a mean so many standard deviations below zero fires for at most 1 in 65 inputs, whatever their
distribution (Cantelli's inequality, 1 / (1 + k²)), and for 1 in 10¹⁵ that are normal."""

LEAST_KEPT = 0.5
"""Frameworks keep 0.9 to 0.9997 of the running statistics at each step; less than half is the other convention."""

STALE = 0.01
"""More of the running statistics than this is still what they began with."""

ROUNDED = 0.02
"""The part by which a running variance of float16 may be rounded away from what it is, over some steps."""

MOST = 0.5
"""A few such channels are usual in trained networks and a note; more than this part of them is a warning. So it is with
the part of the running statistics that is still what they began with."""

LARGE_CANCELLATION = 1000.0
"""The terms of a merged kernel are so many times larger than their sum."""

LARGE_SPREAD = 32.0
"""One int8 scale has 127 steps for the largest channel; a channel so many times smaller has less than four of them."""

LARGE_CREST = 8.0
"""The largest weight of a channel over their root mean square, which is then less than 16 of the 127 steps of int8.
Normally distributed weights reach half of it."""

SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
"""The smallest number of full precision, by the name of its type."""

"""What folding buys, measured so that it can be believed.

    benchmark = measure([Contender("original", path, facts), Contender("folded", folded_path, folded_facts)])

Several fresh processes; in each, all contenders are loaded in a random order, with the runtime's own optimisation off
and at its default, and timed in pairs that alternate AB and BA. A comparison is a ratio of medians with an interval;
faster or slower is said only where the interval excludes 1 and the effect is at least 2 %. A second copy of the first
contender runs as a control: if it seems to differ from the first, the machine was too restless and there is no verdict.
"""

from bnfold.benchmark.gates import Gate, parse_gates
from bnfold.benchmark.live import measure_live
from bnfold.benchmark.measuring import measure
from bnfold.benchmark.records import Benchmark, BenchOptions, Compared, Contender, Measured
from bnfold.benchmark.statistics import Comparison, Interval

__all__ = [
    "BenchOptions",
    "Benchmark",
    "Compared",
    "Comparison",
    "Contender",
    "Gate",
    "Interval",
    "Measured",
    "measure",
    "measure_live",
    "parse_gates",
]

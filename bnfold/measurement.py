"""What the commands that measure share: models of one dialect, from files of their own, as the flags say."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.dialects import Dialect
from bnfold.run import CheckOptions, Run, RunOptions
from bnfold.verification import plan_of

if TYPE_CHECKING:
    from bnfold.benchmark import Benchmark, BenchOptions


def bench_options(
    run_options: RunOptions,
    dialect: Dialect,
    *,
    batches: tuple[int, ...] = (1,),
    budget: float = 60.0,
    processes: int = 10,
) -> BenchOptions:
    """How to measure models of this dialect; `budget` is in seconds for all `processes` together."""
    from bnfold.benchmark import BenchOptions

    plan = plan_of(dialect, run_options, CheckOptions())
    return BenchOptions(
        runtime="torch" if dialect.kind == "pt2" else "onnxruntime",
        batches=batches,
        budget=budget,
        processes=processes,
        threads=run_options.threads or 1,
        provider=run_options.provider,
        provider_options=run_options.settings,
        inputs=plan.inputs,
        probes=plan.probes,
    )


def measured(run: Run, dialect: Dialect, models: Mapping[str, Any], options: BenchOptions) -> Benchmark:
    """The benchmark of these models, by name. Raises as `bnfold.benchmark.measure` does."""
    from bnfold.benchmark import Contender, measure

    with run.stage("bench"), tempfile.TemporaryDirectory() as folder:
        contenders = []
        for number, (name, model) in enumerate(models.items()):
            path = Path(folder) / f"{number}{dialect.suffix}"
            dialect.write(path, model)
            contenders.append(Contender(name, path, dialect.facts(model)))
        return measure(contenders, options, run.progress)

"""From contenders to a benchmark: one input for all, counts, processes, and what the numbers allow to say."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bnfold.benchmark.processes import CONTROL, Processes, Progress
from bnfold.benchmark.records import Benchmark, BenchOptions, Contender
from bnfold.errors import NoVerdict, UsageError
from bnfold.model import Arrays
from bnfold.runtime import CannotRun, Session, census_after_optimisation, session
from bnfold.verify.inputs import with_inputs
from bnfold.verify.probes import dynamic_axes, make_probes


def measure(
    contenders: Sequence[Contender],
    options: BenchOptions = BenchOptions(),
    progress: Progress = lambda line: None,
) -> Benchmark:
    """Measure contenders in fresh processes; `progress` is told one line per step.

    On Ctrl-C, what there is so far comes back, marked `interrupted`. Raises `UsageError` if the contenders do not take
    the same inputs, `NoVerdict` if one does not run, `EnvironmentFailure` for a missing provider or a process that
    dies.
    """
    if not contenders or len({contender.name for contender in contenders}) < len(contenders):
        raise UsageError("bench needs at least one model, each with a name of its own", hint="bnfold bench model.onnx")
    progress("choosing inputs")
    feeds, opened = _inputs(contenders, options)
    left = [_batch_norms_left(contender, options) for contender in contenders]
    load_before = _load()
    with TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        runs = Processes(contenders, options, inputs, progress)
        runs.collect()
    control = runs.interval(contenders[0].name, CONTROL, "default")
    batch = next((value.shape[0] for value in feeds.values() if value.ndim), 1)
    return Benchmark(
        tuple(runs.measured(contender, bn, batch) for contender, bn in zip(contenders, left, strict=True)),
        tuple(runs.compared(pair, control) for pair in runs.pairs if pair[1] != CONTROL),
        control,
        batch,
        len(runs.answers),
        options.threads,
        opened.provider,
        tuple(_notes(options, batch, load_before, runs)),
        runs.interrupted,
    )


def _inputs(contenders: Sequence[Contender], options: BenchOptions) -> tuple[Arrays, Session]:
    """One input that every contender accepts, and the first contender ready to run."""
    opened = [_opened(contender, options) for contender in contenders]
    signature = with_inputs(opened[0].signature, options.inputs)
    wanted = {name: (options.batch,) for name, is_batch in dynamic_axes(signature).items() if is_batch}
    probes = replace(options.probes, dims={**wanted, **options.probes.dims})
    feeds = make_probes(signature, opened[0], probes).probes[0].feeds
    for contender, run in zip(contenders[1:], opened[1:], strict=True):
        names = [port.name for port in run.signature.inputs]
        if set(names) != set(feeds):
            raise UsageError(
                f"{contender.name} has inputs {', '.join(names)}, but {contenders[0].name} has {', '.join(feeds)}",
                code="inputs-differ",
            )
        run(feeds)
    return feeds, opened[0]


def _opened(contender: Contender, options: BenchOptions) -> Session:
    try:
        return session(
            contender.path,
            provider=options.provider,
            provider_options=options.provider_options,
            threads=options.threads,
        )
    except CannotRun as error:
        raise NoVerdict(f"{contender.name}: {error}", code=error.code) from error


def _batch_norms_left(contender: Contender, options: BenchOptions) -> int | None:
    """None where the runtime cannot write down what it made of the graph."""
    try:
        census = census_after_optimisation(
            contender.path, provider=options.provider, provider_options=options.provider_options
        )
    except CannotRun:
        return None
    return census["BatchNormalization"]


def _load() -> float | None:
    """The load average of the last minute, where the system has one."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _notes(options: BenchOptions, batch: int, load_before: float | None, runs: Processes) -> list[str]:
    notes = [f"{platform.machine()}, {os.cpu_count()} cores, load {load_before} before and {_load()} after"]
    if batch != options.batch:
        notes.append(f"the batch is {batch}, as the model or the data fix it, not {options.batch}")
    if len(runs.answers) < options.processes:
        notes.append(f"{len(runs.answers)} of {options.processes} processes in {options.budget:g} s: raise --budget")
    return notes

"""From contenders to a benchmark: one input for all, counts, processes, and what the numbers allow to say."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bnfold.benchmark.processes import Processes, Progress
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
    opened = [_opened(contender, options) for contender in contenders]
    feeds = [_inputs(contenders, opened, options, batch) for batch in options.batches]
    by_batch = {_batch_of(each): each for each in feeds}
    provider = opened[0].provider
    del opened
    censuses = [_census(contender, options) for contender in contenders]
    load_before = _load()
    with TemporaryDirectory() as folder:
        inputs = {batch: Path(folder) / f"{batch}.npz" for batch in by_batch}
        for batch, path in inputs.items():
            np.savez(path, **by_batch[batch])  # type: ignore[arg-type]
        runs = Processes(contenders, options, inputs, progress)
        runs.collect()
    return Benchmark(
        tuple(runs.measured(contender, census) for contender, census in zip(contenders, censuses, strict=True)),
        runs.compared(),
        runs.control,
        runs.batch,
        len(runs.answers),
        options.threads,
        provider,
        tuple(_notes(options, by_batch, load_before, runs)),
        runs.interrupted,
        options.mode,
    )


def _batch_of(feeds: Arrays) -> int:
    return next((value.shape[0] for value in feeds.values() if value.ndim), 1)


def _inputs(contenders: Sequence[Contender], opened: Sequence[Session], options: BenchOptions, batch: int) -> Arrays:
    """One input of this batch size that every contender accepts."""
    signature = with_inputs(opened[0].signature, options.inputs)
    wanted = {name: (batch,) for name, is_batch in dynamic_axes(signature).items() if is_batch}
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
    return feeds


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


def _census(contender: Contender, options: BenchOptions) -> Mapping[str, int] | None:
    """None where the runtime cannot write down what it made of the graph."""
    try:
        census = census_after_optimisation(
            contender.path, provider=options.provider, provider_options=options.provider_options
        )
    except CannotRun:
        return None
    return dict(census)


def _load() -> float | None:
    """The load average of the last minute, where the system has one."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _notes(options: BenchOptions, batches: Iterable[int], load_before: float | None, runs: Processes) -> list[str]:
    notes = [f"{platform.machine()}, {os.cpu_count()} cores, load {load_before} before and {_load()} after"]
    if missing := set(options.batches) - set(batches):
        there, asked = (", ".join(map(str, sorted(sizes))) for sizes in (batches, missing))
        notes.append(f"the batch is {there}, as the model or the data fix it, not {asked}")
    if runs.settled:
        notes.append(f"stopped after {len(runs.answers)} processes: every interval is narrower than 1 %")
    elif len(runs.answers) < options.processes and not runs.interrupted:
        notes.append(f"{len(runs.answers)} of {options.processes} processes in {options.budget:g} s: raise --budget")
    return notes

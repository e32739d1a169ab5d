"""From contenders to a benchmark: one input for all, counts, processes, and what the numbers allow to say."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bnfold.benchmark.processes import Processes, Progress
from bnfold.benchmark.records import Benchmark, BenchOptions, Contender
from bnfold.errors import NoVerdict, UsageError
from bnfold.model import Arrays, Runner, Signature
from bnfold.runtime import CannotRun, census_after_optimisation, session
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
    options, notes = usable(options, progress)
    progress("choosing inputs")
    provider, by_batch = _inputs(contenders, options)
    censuses = [_census(contender, options) for contender in contenders]
    load_before = load()
    with TemporaryDirectory() as folder:
        inputs = {batch: Path(folder) / f"{batch}.npz" for batch in by_batch}
        for batch, path in inputs.items():
            np.savez(path, **by_batch[batch])  # type: ignore[arg-type]
        runs = Processes(contenders, options, inputs, progress)
        runs.collect()
    return summarised(runs, censuses, provider, load_before, notes)


def usable(options: BenchOptions, progress: Progress) -> tuple[BenchOptions, tuple[str, ...]]:
    """The options less the modes that the runtime does not have here, and a note where that changes something."""
    if options.runtime != "torch":
        return options, ()
    from bnfold.frontends import torch

    progress("trying torch.compile")
    cannot = torch.cannot_compile()
    return (options, ()) if cannot is None else (replace(options, first_mode_only=True), (cannot,))


def summarised(
    runs: Processes,
    censuses: Sequence[Mapping[str, int] | None],
    provider: str,
    load_before: float | None,
    notes: tuple[str, ...] = (),
) -> Benchmark:
    """The benchmark that these runs are; `censuses` are the operators that the runtime makes of each contender."""
    return Benchmark(
        tuple(runs.measured(contender, census) for contender, census in zip(runs.contenders, censuses, strict=True)),
        runs.compared(),
        runs.control,
        runs.batch,
        len(runs.answers),
        runs.options.threads,
        provider,
        (*notes, *_notes(runs, load_before)),
        runs.interrupted,
        runs.options.mode,
    )


def _inputs(contenders: Sequence[Contender], options: BenchOptions) -> tuple[str, dict[int, Arrays]]:
    """Where the contenders run, and by batch size one input that every contender accepts."""
    (signature, run, provider), *others = (_opened(contender, options) for contender in contenders)
    signature = with_inputs(signature, options.inputs)
    found = {}
    for batch in options.batches:
        wanted = {name: (batch,) for name, is_batch in dynamic_axes(signature).items() if is_batch}
        probes = replace(options.probes, dims={**wanted, **options.probes.dims})
        feeds = make_probes(signature, run, probes).probes[0].feeds
        for contender, (ports, other, _) in zip(contenders[1:], others, strict=True):
            names = [port.name for port in ports.inputs]
            if set(names) != set(feeds):
                raise UsageError(
                    f"{contender.name} has inputs {', '.join(names)}, but {contenders[0].name} has {', '.join(feeds)}",
                    code="inputs-differ",
                )
            other(feeds)
        found[next((value.shape[0] for value in feeds.values() if value.ndim), 1)] = feeds
    return provider, found


def _opened(contender: Contender, options: BenchOptions) -> tuple[Signature, Runner, str]:
    """What goes in and out of a contender, how it is run to choose inputs, and where it is measured."""
    if options.runtime == "torch":
        from bnfold.frontends import torch

        return *torch.open_program(contender.file), f"torch on {torch.device_of(options.provider)}"
    try:
        opened = session(
            contender.file,
            provider=options.provider,
            provider_options=options.provider_options,
            threads=options.threads,
        )
    except CannotRun as error:
        raise NoVerdict(f"{contender.name}: {error}", code=error.code) from error
    return opened.signature, opened, opened.provider


def _census(contender: Contender, options: BenchOptions) -> Mapping[str, int] | None:
    """None where the runtime cannot write down what it made of the graph."""
    if options.runtime == "torch":
        return None
    try:
        census = census_after_optimisation(
            contender.file, provider=options.provider, provider_options=options.provider_options
        )
    except CannotRun:
        return None
    return dict(census)


def load() -> float | None:
    """The load average of the last minute, where the system has one."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _notes(runs: Processes, load_before: float | None) -> list[str]:
    options = runs.options
    notes = [f"{platform.machine()}, {os.cpu_count()} cores, load {load_before} before and {load()} after"]
    if missing := set(options.batches) - set(runs.batches):
        there, asked = (", ".join(map(str, sorted(sizes))) for sizes in (runs.batches, missing))
        notes.append(f"the batch is {there}, as the model or the data fix it, not {asked}")
    if runs.settled:
        notes.append(f"stopped after {len(runs.answers)} {runs.nouns}: every interval is narrower than 1 %")
    elif len(runs.answers) < options.processes and not runs.interrupted:
        notes.append(f"{len(runs.answers)} of {options.processes} {runs.nouns} in {options.budget:g} s: raise --budget")
    return notes

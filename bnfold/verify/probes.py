"""Inputs to run models on: seeded families at two sizes, one of them the smallest, and the user's own data.

    signature = with_inputs(signature, [parse_input("image:batch,3,h,w")])
    probes = make_probes(signature, runner, ProbeOptions(seed=0))

Sizes of dynamic axes are not known from the model. They are taken from `--dim`, the first axis is 1 and then 2, and the
others are tried in turn until the runner accepts them: first what is usual, then, from below, the smallest that is
legal. The same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import NoVerdict, UsageError
from bnfold.model import Arrays, Port, Runner, Signature
from bnfold.verify.inputs import FLOATS, INTEGERS, Probe, Sizes, numpy_dtype, read_data

Array = NDArray[Any]

LENGTHS = (32, 64, 16, 8, 28, 1, 3, 10, 96, 128, 224, 256, 384, 512)
"""What is tried for a dynamic axis that is not the batch: small sizes first, because they are fast in float64."""

FROM_BELOW = (*range(1, 17), *range(20, 65, 4), 96, 128, 224)
"""What is tried for the smallest legal size."""

FEW = ("normal", "border-impulse")
FAMILIES = (*FEW, "uniform", "small", "large", "constant", "zeros", "checkerboard", "structured")
MANY_NUMBERS = 20_000
_INTEGER_LIMITS = (1000, 100, 8, 2, 1)


@dataclass(frozen=True)
class ProbeOptions:
    """`dims` are the sizes given for named axes; `data` a .npz, a .npy or a folder of them."""

    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    data: Path | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Probes:
    """All inputs, and one sentence on the sizes that they cover."""

    probes: tuple[Probe, ...]
    note: str


def make_probes(signature: Signature, runner: Runner, options: ProbeOptions) -> Probes:
    """Inputs that `runner` accepts. Raises `NoVerdict` if no size is accepted, with the runner's last reason."""
    if options.data is None:
        return _seeded(signature, runner, options)
    data = tuple(read_data(options.data, signature))
    note = f"on {'one input' if len(data) == 1 else f'{len(data)} inputs'} of {options.data.name}"
    try:
        seeded = _seeded(signature, runner, options)
    except NoVerdict:
        return Probes(data, note)
    return Probes((*data, *seeded.probes), f"{note} and {seeded.note}")


def _seeded(signature: Signature, runner: Runner, options: ProbeOptions) -> Probes:
    sizings, limit = accepted_sizes(signature, runner, options)
    if len(sizings) > 1:
        seeds = [(sizes, options.seed) for sizes in sizings]
        note = f"at {len(sizings)} sizes"
    else:
        seeds = [(sizings[0], options.seed), (sizings[0], options.seed + 1)]
        note = "at one size, with two seeds"
    probes = tuple(
        Probe(family, feeds_of(signature, sizes, family, seed, limit), sizes)
        for rank, (sizes, seed) in enumerate(seeds)
        for family in _families(signature, sizes, rank)
    )
    return Probes(probes, note)


def _families(signature: Signature, sizes: Sizes, rank: int) -> tuple[str, ...]:
    """All families where running is cheap; a large input is run on few, and on one at its second size."""
    numbers = sum(int(np.prod(concrete(port, sizes))) for port in signature.inputs)
    if not any(port.dtype in FLOATS for port in signature.inputs):
        return ("uniform",)
    if numbers < MANY_NUMBERS:
        return FAMILIES
    return FEW if rank == 0 else FEW[:1]


def accepted_sizes(signature: Signature, runner: Runner, options: ProbeOptions) -> tuple[list[Sizes], int]:
    """Different assignments of the dynamic axes that `runner` accepts, and the bound on integers that it accepts."""
    found: list[Sizes] = []
    limits: Sequence[int] = _integer_limits(signature)
    refusal = NoVerdict("there is nothing to try", code="no-size")
    for candidates in _rounds(signature, options.dims):
        for sizes, limit in product([sizes for sizes in candidates if sizes not in found], limits):
            try:
                runner(feeds_of(signature, sizes, "normal", options.seed, limit))
            except NoVerdict as error:
                refusal = error
                continue
            found.append(sizes)
            limits = [limit]
            break
    if not found:
        flags = " ".join(f"--dim {name}=N" for name in dynamic_axes(signature))
        hint = "--data inputs.npz" if not flags or len(limits) > 1 else flags  # integers may have a range of their own
        raise NoVerdict(f"no input was found that the model accepts: {refusal}", code="no-size", hint=hint)
    return found, limits[0]


def _integer_limits(signature: Signature) -> Sequence[int]:
    return _INTEGER_LIMITS if any(port.dtype in INTEGERS for port in signature.inputs) else (1,)


def dynamic_axes(signature: Signature) -> dict[str, bool]:
    """The names of the dynamic axes, and whether each is a batch: the first axis of an input."""
    found: dict[str, bool] = {}
    for port in signature.inputs:
        if port.shape is None:
            raise NoVerdict(
                f"the rank of input {port.name} is not known", code="no-size", hint=f"--input {port.name}:1,3,224,224"
            )
        for axis, name in enumerate(_axis_names(port)):
            if isinstance(name, str):
                found[name] = found.get(name, False) or axis == 0
    return found


def _axis_names(port: Port) -> tuple[int | str, ...]:
    return tuple(f"{port.name}.{axis}" if size is None else size for axis, size in enumerate(port.shape or ()))


def concrete(port: Port, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in _axis_names(port))


def _hints(signature: Signature) -> list[int]:
    """Static sizes beyond the channel axis: the other spatial axis often has the same."""
    found = [size for port in signature.inputs for size in (port.shape or ())[2:] if isinstance(size, int) and size > 1]
    return list(dict.fromkeys(found))


def _rounds(signature: Signature, dims: Mapping[str, tuple[int, ...]]) -> Iterator[list[Sizes]]:
    """For each size that is wanted, the assignments to try in turn: the usual ones, then from the smallest up."""
    axes = dynamic_axes(signature)
    if unknown := sorted(dims.keys() - axes.keys()):
        known = ", ".join(axes) or "none"
        raise UsageError(f"--dim names {unknown[0]}, but the dynamic axes of the model are: {known}", code="bad-dim")
    lengths = list(dict.fromkeys([*_hints(signature), *LENGTHS]))
    for turn in range(max([min(len(axes) + 1, 2), *(len(dims[name]) for name in axes if name in dims)])):
        order = lengths if turn == 0 else [*FROM_BELOW, *lengths]
        assignments = [_assigned(axes, dims, turn, length) for length in order]
        assignments += [_assigned(axes, dims, 0, length) for length in order] * (turn == 1)  # a batch of 1 alone
        yield [sizes for position, sizes in enumerate(assignments) if sizes not in assignments[:position]]


def _assigned(axes: Mapping[str, bool], dims: Mapping[str, tuple[int, ...]], turn: int, length: int) -> Sizes:
    def size(name: str, is_batch: bool) -> int:
        if name in dims:
            return dims[name][turn % len(dims[name])]
        return turn + 1 if is_batch else length

    return {name: size(name, is_batch) for name, is_batch in axes.items()}


def feeds_of(signature: Signature, sizes: Sizes, family: str, seed: int, limit: int) -> Arrays:
    """The arrays of one family, one per input, each from its own stream."""
    feeds = {}
    for index, port in enumerate(signature.inputs):
        random = np.random.default_rng([seed, index, FAMILIES.index(family)])
        feeds[port.name] = _values(port, concrete(port, sizes), family, random, limit)
    return feeds


def _values(port: Port, shape: tuple[int, ...], family: str, random: np.random.Generator, limit: int) -> Array:
    if port.dtype in FLOATS:
        return np.asarray(_real(shape, family, random)).astype(numpy_dtype(port.dtype))
    if port.dtype in INTEGERS:
        return random.integers(0, limit, shape).astype(port.dtype)
    if port.dtype == "bool":
        return random.integers(0, 2, shape).astype(np.bool_)
    raise NoVerdict(
        f"input {port.name} has type {port.dtype}, which cannot be made up", code="no-size", hint="--data FILE"
    )


def _real(shape: tuple[int, ...], family: str, random: np.random.Generator) -> Array:
    if family == "uniform":
        return random.uniform(0, 1, shape)
    if family == "constant":
        return np.ones(shape)
    if family == "zeros":
        return np.zeros(shape)
    if family == "border-impulse":
        return _border_impulse(shape)
    if family == "structured":
        return _structured(shape, random)
    if family == "checkerboard":
        return np.where(np.indices(shape).sum(axis=0) % 2 == 0, 1.0, -1.0) if shape else np.ones(())
    return random.standard_normal(shape) * {"normal": 1.0, "small": 2.0**-10, "large": 2.0**5}[family]


def _border_impulse(shape: tuple[int, ...]) -> Array:
    """Zero but for the first and the last position of every channel: what padding gets wrong shows here."""
    values = np.zeros(shape)
    if values.size:
        flat = values.reshape(*shape[:2], -1)
        flat[..., :1] = 1.0
        flat[..., -1:] = -2.0
    return values


def _structured(shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Smooth, as images are: for each channel an offset and three waves of at most three periods along each axis."""
    channels, extent = shape[:2], shape[2:]
    ones = (1,) * len(extent)
    values = np.broadcast_to(random.standard_normal((*channels, *ones)), shape).copy()
    for _ in range(3):
        phase = random.uniform(0, 2 * np.pi, (*channels, *ones))
        for axis, size in enumerate(extent):
            positions = np.arange(size).reshape(-1, *(1,) * (len(extent) - axis - 1)) / max(size, 1)
            phase = phase + 2 * np.pi * random.integers(0, 4, (*channels, *ones)) * positions
        values += np.sin(phase) * random.uniform(0.2, 1, (*channels, *ones))
    return values

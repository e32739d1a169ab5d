"""One way to execute one model, prepared when it is first needed; what it refuses is kept as a reason.

A `Subject` is one of the two models that are compared: a signature, and callables that prepare its execution. A
`Machine` runs one of those and speaks the names of the reference, whatever the model itself calls its ports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from bnfold.errors import MissingDependency, NoVerdict
from bnfold.evidence import Contents
from bnfold.model import Arrays, Port, Runner, Signature, StoredSize
from bnfold.verify.anatomy import Tissue
from bnfold.verify.inputs import numpy_dtype
from bnfold.verify.licence import paired

NOTHING_STORED = StoredSize()


@dataclass(frozen=True, eq=False)
class Subject:
    """One of the two models. The callables are called at most once, and only if the level executes anything.

    `exact` returns the model executed in float64, `actual` in the runtime with its own optimisations off, `optimised`
    with those that it has by default (None for a runtime that has none); or they raise `NoVerdict` or
    `MissingDependency`. `decides` says that the model rounds or decides inside (QuantizeLinear, TopK, ArgMax…), where
    the smallest error may turn into a large one. `tissue` opens the model; without it there is no L3. By what is
    `stored` the memory to execute it is estimated. `contents` reads it node by node, for those who ask why it differs.
    """

    signature: Signature
    exact: Callable[[], Runner]
    actual: Callable[[], Runner]
    decides: bool = False
    optimised: Callable[[], Runner] | None = None
    tissue: Callable[[], Tissue] | None = None
    stored: StoredSize = NOTHING_STORED
    contents: Callable[[], Contents] | None = None


@dataclass(eq=False)
class Machine:
    """One way to execute one model: prepared at the first run, and never again after a refusal.

    `needed` says that a missing package is an error, not a refusal. It speaks the names of the reference: what it is
    given and what it returns are renamed and cast on the way.
    """

    prepare: Callable[[], Runner]
    reference: Signature
    own: Signature
    needed: bool = False
    refusal: str | None = None
    elapsed_s: float = 0.0
    _runner: Runner | None = None

    def run(self, feeds: Mapping[str, NDArray[Any]], *, as_given: bool = False) -> Arrays | None:
        """The outputs by the reference's names, or None: then `refusal` says why.

        Numbers are cast to the types of the model's inputs, unless they are to be taken `as_given`.
        """
        if self.refusal:
            return None
        start = time.perf_counter()
        try:
            self._runner = self._runner or self.prepare()
            results = self._runner(feeds if as_given else self.renamed(feeds))
        except (NoVerdict, MissingDependency) as error:
            if self.needed and isinstance(error, MissingDependency):
                raise
            self.refusal = str(error)
            return None
        finally:
            self.elapsed_s += time.perf_counter() - start
        return {mine.name: results[own.name] for mine, own in paired(self.reference.outputs, self.own.outputs)}

    def renamed(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """The numbers by the names, and in the types, of the model's own inputs."""
        ports = paired(self.reference.inputs, self.own.inputs)
        return {own.name: feeds[mine.name].astype(numpy_dtype(own.dtype), copy=False) for mine, own in ports}

    def accepts(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run to see whether an input is accepted: raises `NoVerdict`, and the machine stays usable."""
        results, refusal = self.run(feeds), self.refusal
        if results is None:
            self.refusal = refusal if self._runner is None else None
            raise NoVerdict(str(refusal), code="cannot-run")
        return results


def release(*machines: Machine) -> None:
    """Let go of the models, which may be large."""
    for machine in machines:
        machine._runner = None


def narrowed(reference: Signature, candidate: Signature) -> Signature:
    """The reference's signature, with the sizes of inputs that only the candidate fixes."""
    ports = [_narrowed(mine, own) for mine, own in paired(reference.inputs, candidate.inputs)]
    return Signature(tuple(ports), reference.outputs)


def _narrowed(mine: Port, own: Port) -> Port:
    if mine.shape is None or own.shape is None or len(mine.shape) != len(own.shape):
        return mine
    pairs = zip(mine.shape, own.shape, strict=True)
    return replace(
        mine,
        shape=tuple(
            size if isinstance(size, int) else fixed if isinstance(fixed, int) else size for size, fixed in pairs
        ),
    )

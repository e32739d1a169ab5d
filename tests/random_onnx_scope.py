"""A random ONNX graph under construction: names, constants in any spelling, nodes that are executed as they are added.

So a model that was drawn always runs: what a node cannot compute raises `Undrawable`, and `Scope.undone` takes back
what was added for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from numpy_onnx import FLOATS, as_array, evaluate
from onnx import TensorProto, helper, numpy_helper
from onnx_build import tensor

Array = NDArray[Any]
LARGEST, MOST_ELEMENTS = 1e4, 600


class Undrawable(Exception):
    """The recipe fits nothing here."""


@dataclass(frozen=True, eq=False)
class Value:
    """What a name stands for. `channel` is the axis on which an affine would most likely fold."""

    name: str
    array: Array
    dtype: int
    channel: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim


@dataclass
class Settings:
    """What all scopes of one model share."""

    random: np.random.Generator
    opset: int
    dtype: int
    names: int = 0
    functions: list[onnx.FunctionProto] = field(default_factory=list)

    def fresh(self, base: str) -> str:
        self.names += 1
        return f"{base}{self.names}"


@dataclass
class Scope:
    """A graph, the body of an If, or of a function, under construction."""

    settings: Settings
    kind: str = "graph"
    parent: Scope | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    constants: list[Value] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)

    # chance

    @property
    def random(self) -> np.random.Generator:
        return self.settings.random

    @property
    def opset(self) -> int:
        return self.settings.opset

    def maybe(self, chance: float) -> bool:
        return bool(self.random.random() < chance)

    def one(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def size(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    # nodes

    def node(self, op: str, *inputs: Value | None, channel: int | None = None, **more: Any) -> Value:
        return self.several(op, *inputs, count=1, channel=channel, **more)[0]

    def several(
        self,
        op: str,
        *inputs: Value | None,
        count: int,
        channel: int | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """A node with its outputs, which become values of the scope unless all that it reads is constant."""
        names = [self.settings.fresh(op.lower()) for _ in range(count)]
        label = "" if self.maybe(0.1) else f"{names[0]}_node"
        read = [each.name if each is not None else "" for each in inputs]
        proto = helper.make_node(op, read, names, name=label, domain=domain, **attributes)
        arrays = {name: array for scope in self._scopes() for name, array in scope.items()}
        functions = {(each.domain, each.name): each for each in self.settings.functions}
        try:
            made = evaluate(proto, arrays | {"": np.array(0.0)}, self.opset, functions)
        except (ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError) as error:
            raise Undrawable(op) from error
        for array in made.values():
            if not array.size or array.size > MOST_ELEMENTS or not np.abs(array).max() < LARGEST:
                raise Undrawable(op)
        self.nodes.append(proto)
        dtype = attributes["to"] if op == "Cast" else next((each.dtype for each in inputs if each), self.settings.dtype)
        outputs = [Value(name, made[name], dtype, channel) for name in names]
        is_constant = all(each is None or any(each in scope.constants for scope in self._chain()) for each in inputs)
        (self.constants if is_constant else self.values).extend(outputs)
        return outputs

    def _chain(self) -> list[Scope]:
        return [self, *(self.parent._chain() if self.parent and self.kind != "function" else [])]

    def _scopes(self) -> list[dict[str, Array]]:
        return [{each.name: each.array for each in (*scope.values, *scope.constants)} for scope in self._chain()]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back what is added if it comes to nothing."""
        lists: tuple[list[Any], ...] = (self.nodes, self.values, self.constants, self.stored, self.declared)
        lengths = [len(each) for each in lists]
        try:
            yield
        except Undrawable:
            for each, length in zip(lists, lengths, strict=True):
                del each[length:]
            raise

    # constants

    def constant(self, array: Any, dtype: int | None = None, base: str = "c") -> Value:
        """A constant in any spelling: shared with another of its shape, stored, computed, or what a caller may give."""
        dtype = dtype or self.settings.dtype
        known = [each for scope in self._chain() for each in scope.constants]
        alike = [each for each in known if each.dtype == dtype and each.shape == np.shape(array)]
        keeps_sign = bool(alike) and np.all(np.asarray(array) > 0) <= np.all(alike[-1].array > 0)
        if keeps_sign and dtype in FLOATS and self.maybe(0.12):
            return alike[-1]
        if dtype in FLOATS and np.ndim(array) == 2 and self.maybe(0.06):
            return self.node("Transpose", self._store(np.transpose(array), dtype, base), perm=[1, 0])
        if dtype in FLOATS and self.maybe(0.06):
            return self.node("Identity", self._store(array, dtype, base))
        return self._store(array, dtype, base)

    def _store(self, array: Any, dtype: int, base: str) -> Value:
        name = self.settings.fresh(base)
        proto = tensor(name, array, dtype) if dtype in FLOATS else numpy_helper.from_array(np.asarray(array), name)
        value = Value(name, as_array(proto), dtype)
        self.constants.append(value)
        if self.kind == "function" or self.maybe(0.15):
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"{name}_node", value=proto))
        else:
            self.stored.append(proto)
            if self.kind == "graph" and dtype in FLOATS and self.maybe(0.02):
                self.declared.append(name)
        return value

    def integers(self, *numbers: int) -> Value:
        return self.constant(np.array(numbers, dtype=np.int64), TensorProto.INT64, "i")

    def numbers(self, *shape: int) -> Array:
        return self.random.normal(0, 0.6, shape)

    def scales(self, shape: Sequence[int]) -> Array:
        """Numbers to scale by: mostly of both signs, often all positive, sometimes alike, or with a zero or a one."""
        found = self.random.uniform(0.4, 1.8, tuple(shape))
        if self.maybe(0.4):
            found *= self.random.choice([-1, 1], shape)
        if self.maybe(0.1):
            found = np.full(shape, found.flat[0])
        if found.size and self.maybe(0.1):
            found.flat[self.size(0, found.size - 1)] = self.one(0.0, 1.0)
        return found

    def shifts(self, shape: Sequence[int]) -> Array:
        """Numbers to add: often none, sometimes alike."""
        return self.one(*[self.numbers(*shape)] * 3, np.zeros(shape), np.full(shape, 0.75))

    def pick(self, test: Callable[[Value], bool] = lambda value: True) -> Value:
        """A value to go on with: mostly the latest."""
        fitting = [each for each in self.values if each.dtype in FLOATS and test(each)]
        if not fitting:
            raise Undrawable("no value")
        return fitting[-1] if self.maybe(0.88) else self.one(*fitting)

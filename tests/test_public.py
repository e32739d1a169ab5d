"""Every public name says what it takes, gives and raises: to people in its docstring, to type checkers in its types."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

import bnfold


def untold(name: str, thing: Any) -> Iterator[str]:
    """What is not documented or not typed of a function, or of a class and all that it defines for its users."""
    if not inspect.isclass(thing):
        yield from _untyped(name, thing)
        text = thing.__doc__ or ""
        yield from (
            f"{name} does not tell {each}" for each in inspect.signature(thing).parameters if f"`{each}" not in text
        )
        if "Raises" not in text:
            yield f"{name} does not tell what it raises"
        return
    if not vars(thing).get("__doc__") or thing.__doc__.startswith(f"{thing.__name__}("):  # a dataclass makes one up
        yield f"{name} has no docstring"
    yield from (
        f"{name}.{each} has no type" for each in getattr(thing, "__dataclass_fields__", {}) if not _hinted(thing, each)
    )
    for each, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if each.startswith("_") or not inspect.isfunction(function):
            continue
        yield from _untyped(f"{name}.{each}", function)
        if not function.__doc__:
            yield f"{name}.{each} has no docstring"


def _hinted(thing: Any, name: str) -> bool:
    return any(name in vars(base).get("__annotations__", {}) for base in thing.__mro__)


def _untyped(name: str, function: Any) -> Iterator[str]:
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    yield from (f"{name}: {each.name} has no type" for each in parameters if each.annotation is each.empty)
    if signature.return_annotation is signature.empty:
        yield f"{name} does not say what it returns"


@pytest.mark.parametrize("name", bnfold.__all__)
def test_a_public_name_is_documented_and_typed(name: str) -> None:
    assert list(untold(name, getattr(bnfold, name))) == []


def test_what_is_not_told_is_seen() -> None:
    class Silent:
        def work(self, x):  # type: ignore[no-untyped-def]
            return x

        @property
        def size(self) -> int:
            return 1

    def half(x: int, y) -> int:  # type: ignore[no-untyped-def]
        """Half of `x`."""
        return x

    assert list(untold("S", Silent)) == [
        "S has no docstring",
        "S.work: x has no type",
        "S.work does not say what it returns",
        "S.work has no docstring",
        "S.size has no docstring",
    ]
    assert list(untold("h", half)) == ["h: y has no type", "h does not tell y", "h does not tell what it raises"]


def test_the_package_says_that_it_is_typed() -> None:
    assert files("bnfold").joinpath("py.typed").is_file()

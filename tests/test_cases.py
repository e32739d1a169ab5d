"""Every row of `cases.py` in every form, against the row's own network in float64, at two batch sizes."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cases import GENEROUS, SECTIONS, Absent, Row
from licences import assert_licensed
from onnx_build import feeds_of
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bnfold.frontends import onnx as stored
from bnfold.frontends import torch as frontend
from bnfold.frontends.torch.export import to_onnx
from bnfold.outcome import Outcome
from bnfold.verify.float64 import float64_runner

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, in `program.module()`


def rows_of(form: str) -> list[Any]:
    """The rows of a form; those of a section stay together, for they are exported together."""
    return [
        pytest.param(section, index, id=f"{section}: {row.title}", marks=pytest.mark.xdist_group(section))
        for section, rows in SECTIONS.items()
        for index, row in enumerate(rows)
        if not isinstance(row.outcome(form), Absent)
    ]


def network(row: Row) -> nn.Module:
    """The row's network, of its own memory, in the type of the row."""
    copied = copy.deepcopy(row.net)
    return copied if row.dtype is None else copied.to(row.dtype)


def data(row: Row, dtype: torch.dtype | None, batch: int | None) -> tuple[Tensor, ...]:
    """What the row is given: numbers around zero, with another first size if one is named."""
    generator = torch.Generator().manual_seed(batch or 0)
    shapes = [shape if batch is None or not row.batch else (batch, *shape[1:]) for shape in row.shapes]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def data_type(module: nn.Module) -> torch.dtype:
    floats = [t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return floats[0] if floats else torch.float64


def run64(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    wide = copy.deepcopy(module).double()
    with torch.no_grad():
        return flat(wide(*(tensor.double() for tensor in inputs)))


def flat(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def words(outcomes: Sequence[Outcome]) -> str:
    """What became of the affines, as the rows spell it."""
    named = (o.rule.removeprefix("into-") if o.rule and o.refusal is None else o.refusal.reason.code for o in outcomes)  # type: ignore[union-attr]
    return " ".join(named)


def assert_outcome(row: Row, form: str, outcomes: Sequence[Outcome]) -> None:
    expected = row.outcome(form)
    assert isinstance(expected, str)
    pattern = " ".join(f"{word[:-1]}(?: {word[:-1]})*" if word.endswith("+") else word for word in expected.split())
    assert re.fullmatch(pattern, words(outcomes)), f"{words(outcomes)!r} is not {expected!r}: {details(outcomes)}"


def details(outcomes: Sequence[Outcome]) -> list[tuple[Any, ...]]:
    return [(o.site.op, o.refusal.blocker if o.refusal else [site.name for site in o.into]) for o in outcomes]


def assert_same(row: Row, expected: Sequence[Any], found: Sequence[Any]) -> None:
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        one, other = (np.asarray(each.detach() if isinstance(each, Tensor) else each) for each in (one, other))
        assert one.shape == other.shape
        assert np.array_equal(np.isfinite(one), np.isfinite(other))
        finite = np.isfinite(one)
        assert np.abs(one - other)[finite].max(initial=0) <= row.limit * np.abs(one[finite]).max(initial=1e-300)


@pytest.mark.parametrize(("section", "index"), rows_of("fx"))
def test_as_traced_module(section: str, index: int) -> None:
    row = SECTIONS[section][index]
    module = network(row)
    kind = data_type(module)
    folded, report = frontend.fold_module(fx.symbolic_trace(module), data(row, kind, None), row.options)
    assert_outcome(row, "fx", report.outcomes)
    for batch in (2, 3):
        inputs = data(row, kind, batch)
        assert_same(row, run64(module, inputs), run64(folded, inputs))


@pytest.mark.parametrize(("section", "index"), rows_of("program"))
def test_as_exported_program(section: str, index: int) -> None:
    row = SECTIONS[section][index]
    module = network(row)
    kind = data_type(module)
    program = frontend.capture(module, data(row, kind, None))
    folded, report = frontend.fold_program(program, row.options)
    assert_outcome(row, "program", report.outcomes)
    assert_licensed(frontend, program, folded, report)
    wide = frontend.as_float64(folded).module()
    for batch in (2, 3):
        inputs = data(row, kind, batch)
        with torch.no_grad():
            found = flat(wide(*(tensor.double() for tensor in inputs)))
        assert_same(row, run64(module, inputs), found)


@pytest.mark.parametrize(("section", "index"), rows_of("onnx"))
def test_as_onnx(section: str, index: int) -> None:
    row = SECTIONS[section][index]
    if isinstance(row.net, onnx.ModelProto):
        check_stored(row)
        return
    result = exported(section)[index] if row.options is GENEROUS else export({0: row})[0]
    assert_outcome(row, "onnx", result.outcomes)
    for batch, found in result.found.items():
        module = network(row)
        assert_same(row, run64(module, data(row, data_type(module), batch)), found)


def check_stored(row: Row) -> None:
    """A row that is an ONNX model from the start."""
    model = stored.from_proto(row.net)
    folded, report = stored.fold_model(model, row.options)
    assert_outcome(row, "onnx", report.outcomes)
    assert_licensed(stored, model, folded, report)
    if not row.runs:
        assert stored.to_bytes(folded) == stored.to_bytes(model)
        return
    before, after = (float64_runner(stored.to_proto(stored.as_float64(each))) for each in (model, folded))
    for batch in (2, 3):
        feeds = feeds_of(model, seed=batch, unknown=batch)
        assert_same(row, list(before(feeds).values()), list(after(feeds).values()))


@dataclass(frozen=True)
class Exported:
    """What became of a row in a folded ONNX model, and what the model computes for each batch size."""

    outcomes: tuple[Outcome, ...]
    found: Mapping[int, list[Any]]


class Rows(nn.Module):
    """Several networks side by side: exporting them together takes a tenth of the time."""

    def __init__(self, networks: Mapping[int, nn.Module], inputs: Mapping[int, int]) -> None:
        super().__init__()
        self.inputs = inputs
        for index, module in networks.items():
            self.add_module(f"row_{index}", module)

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        remaining, results = list(tensors), []
        for index, count in self.inputs.items():
            given, remaining = remaining[:count], remaining[count:]
            results.append(getattr(self, f"row_{index}")(*given))
        return tuple(results)


@cache
def exported(section: str) -> dict[int, Exported]:
    """The rows of a section that torch can spell, exported together and folded as one model."""
    return export(
        {
            index: row
            for index, row in enumerate(SECTIONS[section])
            if row.options is GENEROUS
            and not isinstance(row.outcome("onnx"), Absent)
            and isinstance(row.net, nn.Module)
        }
    )


def export(rows: Mapping[int, Row]) -> dict[int, Exported]:
    networks = {index: network(row) for index, row in rows.items()}
    kinds = {index: data_type(module) for index, module in networks.items()}
    together = Rows(networks, {index: len(row.shapes) for index, row in rows.items()}).eval()
    examples = [tensor for index, row in rows.items() for tensor in data(row, kinds[index], None)]
    model = to_onnx(frontend.capture(together, tuple(examples)))
    folded, report = stored.fold_model(model, next(iter(rows.values())).options)
    assert_licensed(stored, model, folded, report)
    found = {batch: ran(folded, rows, kinds, networks, batch) for batch in (2, 3)}
    return {
        index: Exported(
            tuple(o for o in report.outcomes if (o.site.module or "").split(".")[0] == f"row_{index}"),
            {batch: results[index] for batch, results in found.items()},
        )
        for index in rows
    }


def ran(model: ir.Model, rows: Any, kinds: Any, networks: Any, batch: int) -> dict[int, list[Any]]:
    """The outputs of each row."""
    tensors = [tensor for index, row in rows.items() for tensor in data(row, kinds[index], batch)]
    names = [value.name for value in model.graph.inputs]
    feeds = {name: tensor.double().numpy() for name, tensor in zip(names, tensors, strict=True)}
    results = list(float64_runner(stored.to_proto(stored.as_float64(model)))(feeds).values())
    found = {}
    for index, row in rows.items():
        count = len(run64(networks[index], data(row, kinds[index], batch)))
        found[index], results = results[:count], results[count:]
    return found

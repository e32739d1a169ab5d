"""The pytest plugin in somebody else's project: a folder with a `pyproject.toml` and a test, pytest as a process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import demo_in

import bnfold
from bnfold.errors import BnfoldError
from bnfold.testing import Different, NotCompared, assert_equivalent

TESTS = '''
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold


@pytest.fixture
def folded():
    return bnfold.fold(onnx.load("demo.onnx")).model


def spoilt(model, change):
    """The model with one weight of its first convolution changed."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    tensor = weights[next(node.input[1] for node in model.graph.node if node.op_type == "Conv")]
    array = numpy_helper.to_array(tensor).copy()
    array[0] = change(array[0])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def test_a_fold(assert_equivalent, folded):
    assert assert_equivalent("demo.onnx", folded).passed


def test_a_wrong_fold(assert_equivalent, folded):
    wrong = spoilt(folded, lambda weights: weights * np.float32(1.01))
    assert_equivalent("demo.onnx", wrong)


def test_not_finite(assert_equivalent, folded):
    nothing = spoilt(folded, lambda weights: weights * np.nan)
    assert_equivalent(nothing, nothing)
'''


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, ElementTree.Element]]:
    """What pytest prints in a project that is not bnfold, and its test cases."""
    folder = tmp_path_factory.mktemp("outside")
    demo_in(folder)
    (folder / "pyproject.toml").write_text('[project]\nname = "outside"\nversion = "1"\n\n[tool.pytest.ini_options]\n')
    (folder / "test_models.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=outcome.xml"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 1, ran.stdout[-3000:] + ran.stderr[-1000:]
    cases = ElementTree.parse(folder / "outcome.xml").iter("testcase")
    return ran.stdout, {case.attrib["name"]: case for case in cases}


def message(outside: tuple[str, dict[str, ElementTree.Element]], name: str) -> str:
    """The failure of a test case, as pytest shows it."""
    failure = outside[1][name].find("failure")
    assert failure is not None, name
    return failure.text or ""


def test_a_right_fold_passes(outside: tuple[str, dict[str, ElementTree.Element]]) -> None:
    assert outside[0].splitlines()[-1].startswith("2 failed, 1 passed")
    assert len(outside[1]["test_a_fold"]) == 0


def test_the_message_names_the_layer_and_the_figure(outside: tuple[str, dict[str, ElementTree.Element]]) -> None:
    text = message(outside, "test_a_wrong_fold")
    assert re.search(r"^E +bnfold\.testing\.Different: Not equivalent, by L\d: ", text, re.MULTILINE)
    assert re.search(r"^E +L\d +fail .*\(limit [\d.e-]+\)$", text, re.MULTILINE)
    assert '>       assert_equivalent("demo.onnx", wrong)' in text
    assert "def check_models" not in text


def test_no_verdict_is_no_pass(outside: tuple[str, dict[str, ElementTree.Element]]) -> None:
    assert re.search(r"^E +bnfold\.testing\.NotCompared: No verdict: ", message(outside, "test_not_finite"), re.M)


def test_the_errors_are_assertions_and_errors_of_bnfold() -> None:
    for kind, code in ((Different, 1), (NotCompared, 7)):
        assert issubclass(kind, AssertionError)
        assert issubclass(kind, BnfoldError)
        assert kind.exit_code == code


def test_the_function_returns_what_check_finds(tmp_path: Path) -> None:
    demo = demo_in(tmp_path)
    verification = assert_equivalent(demo, bnfold.fold(demo).model)
    assert verification.passed
    assert verification.outputs

"""`bnfold.certificate/1`: the same bytes for the same models, all that is needed to derive it again, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from command_line import demo_in, validated
from onnx import numpy_helper
from onnx_build import Net
from test_licence import network

from bnfold.cli import main
from bnfold.errors import Exit
from bnfold.origin import Chain, Joined, Leaf, Origin, Part, Stack, names_of
from bnfold.outcome import Absorbed
from bnfold.reports import certificate
from bnfold.reports.certificate import _origin, _Origins, schema


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its fold, and the certificate of it."""
    folder = tmp_path_factory.mktemp("proved")
    onnx.save(network(), folder / "a.onnx")
    assert main(["fold", str(folder / "a.onnx"), "-o", str(folder / "b.onnx"), "-q", *certified(folder)]) == Exit.OK
    return folder


def certified(folder: Path, name: str = "c.json") -> list[str]:
    return ["--certificate", str(folder / name)]


def verify(folder: Path, *models: str | Path, given: str = "c.json") -> int:
    words = [str(model if isinstance(model, Path) else folder / model) for model in models]
    return main(["check", "--verify-certificate", str(folder / given), *words])


def written(folder: Path, name: str = "c.json") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / name).read_text())
    jsonschema.Draft202012Validator(schema()).validate(document)
    return document


def test_it_says_what_the_interface_promises(proved: Path) -> None:
    document = written(proved)
    assert document["schema"] == "bnfold.certificate/1"
    first = document["affines"][0]
    assert (first["id"], first["rule"], first["into"][0]["node"]) == ("A001", "into-producer", "first_node")
    assert [tensor["name"] for tensor in first["tensors"]] == ["first.weight", "first.bias"]
    assert all(0 <= tensor["ulp"] <= 0.500001 for tensor in first["tensors"])
    held = {each.name: numpy_helper.to_array(each) for each in onnx.load(proved / "b.onnx").graph.initializer}
    assert first["tensors"][0]["sha256"] == sha256(held["first.weight"].tobytes()).hexdigest()
    assert document["merges"][0]["nodes"] == []
    assert document["merges"][0]["into"] == "wide_node"
    text = (proved / "c.json").read_text()
    assert str(proved) not in text
    assert ".onnx" not in text


def test_check_makes_the_same_bytes_in_any_process(proved: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        words = ["check", proved / "a.onnx", proved / "b.onnx", "--json", *certified(tmp_path, f"{seed}.json")]
        ran = subprocess.run(
            [sys.executable, "-m", "bnfold", *map(str, words)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        check = validated(ran.stdout)["check"]
        assert check["verdict"] == "proved"
        assert [layer["status"] for layer in check["layers"]] == ["pass"] * len(check["layers"])
        assert (tmp_path / f"{seed}.json").read_bytes() == (proved / "c.json").read_bytes()


def test_it_is_derived_again_without_torch_or_a_runtime(proved: Path) -> None:
    words = ["check", "--verify-certificate", *(str(proved / name) for name in ("c.json", "a.onnx", "b.onnx"))]
    code = (
        f"import sys; from bnfold.cli import main; code = main({words!r});"
        "print({'torch', 'onnxruntime'} & sys.modules.keys()); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("Proved")
    assert ran.stdout.rstrip().endswith("set()")


def test_alone_it_shows_nothing_of_a_model_and_says_so(proved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(proved) == Exit.OK
    assert "nothing is shown of any model" in " ".join(capsys.readouterr().out.split())


def last_bit(path: Path, name: str, to: Path) -> Path:
    model = onnx.load(path)
    stored = next(each for each in model.graph.initializer if each.name == name)
    numbers = numpy_helper.to_array(stored).copy()
    numbers.reshape(-1)[0] = np.nextafter(numbers.reshape(-1)[0], np.float32(9))
    stored.CopyFrom(numpy_helper.from_array(numbers, name))
    onnx.save(model, to)
    return to


def test_another_model_is_not_proved_by_it(proved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(proved, "a.onnx", "b.onnx") == Exit.OK
    wrong = last_bit(proved / "b.onnx", "second.weight", tmp_path / "wrong.onnx")
    assert verify(proved, "a.onnx", wrong) == Exit.NOT_EQUIVALENT
    assert "second_node" in " ".join(capsys.readouterr().err.split())
    same = onnx.load(proved / "b.onnx")
    same.graph.node[0].doc_string = "the same network in other bytes"
    onnx.save(same, tmp_path / "same.onnx")
    assert verify(proved, "a.onnx", tmp_path / "same.onnx") == Exit.NOT_EQUIVALENT
    assert "candidate.bytes" in capsys.readouterr().err


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


CONTRADICTED = {
    "a hash": put("affines", 0, "tensors", 0, "sha256", value="0" * 64),
    "a distance": put("affines", 0, "tensors", 0, "ulp", value=0.25),
    "another affine": put("origins", 0, value={"leaf": "bn2_node"}),
    "the other side": put("absorbed", 0, "side", value="before"),
    "a model": put("reference", "sha256", value="0" * 64),
}
UNREADABLE = {
    "another schema": put("schema", value="bnfold.certificate/9"),
    "no affines": lambda document: document.pop("affines"),
    "no hash": put("affines", 0, "tensors", 0, "sha256", value="zero"),
    "a place that is not there": put("absorbed", 0, "origin", value=99),
    "a reason nobody knows": put("affines", 1, "reason", value="because"),
    "another number": put("affines", 0, "id", value="A007"),
    "an operator that took nothing in": put("affines", 0, "into", value=[{"node": "y_node", "op": "Softmax"}]),
}


def tampered(folder: Path, change: Callable[[dict[str, Any]], object], to: Path) -> str:
    document = written(folder)
    change(document)
    (to / "d.json").write_text(json.dumps(document))
    return str(to / "d.json")


@pytest.mark.parametrize("title", CONTRADICTED)
def test_what_the_models_contradict_is_not_equivalent(proved: Path, tmp_path: Path, title: str) -> None:
    given = tampered(proved, CONTRADICTED[title], tmp_path)
    assert verify(proved, "a.onnx", "b.onnx", given=given) == Exit.NOT_EQUIVALENT


@pytest.mark.parametrize("title", UNREADABLE)
def test_what_is_no_certificate_is_rejected(proved: Path, tmp_path: Path, title: str) -> None:
    given = tampered(proved, UNREADABLE[title], tmp_path)
    assert verify(proved, given=given) == Exit.REJECTED
    assert verify(proved, "a.onnx", "b.onnx", given=given) == Exit.REJECTED


def test_files_that_are_none(proved: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    for given in (tmp_path / "none.json", tmp_path / "text.json", proved / "a.onnx"):
        assert verify(proved, given=str(given)) == Exit.REJECTED


def test_without_a_proof_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else's fold: equal, but no records say how it was made."""
    demo = demo_in(tmp_path)
    other = onnx.load(demo)
    other.graph.name = "another"
    onnx.save(other, tmp_path / "other.onnx")
    assert main(["check", str(demo), str(tmp_path / "other.onnx"), *certified(tmp_path)]) == Exit.NO_VERDICT
    assert "no proof to certify" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_a_certificate_never_replaces_a_model_or_another_file(proved: Path, tmp_path: Path) -> None:
    pair = [str(proved / "a.onnx"), str(proved / "b.onnx")]
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = (proved / "a.onnx").read_bytes()
    for target in (proved / "a.onnx", notes, tmp_path):
        assert main(["check", *pair, "--certificate", str(target)]) == Exit.USAGE
    assert main(["check", *pair, "--certificate", str(tmp_path / "no" / "c.json")]) == Exit.ENVIRONMENT
    assert notes.read_text() == "mine"
    assert (proved / "a.onnx").read_bytes() == before
    assert main(["fold", pair[0], "-o", str(tmp_path / "b.onnx"), "--no-check", *certified(tmp_path)]) == Exit.USAGE
    assert main(["check", "--verify-certificate", "x", *pair, *certified(tmp_path)]) == Exit.USAGE


def test_a_wrong_fold_is_no_fold_of_ours(proved: Path, tmp_path: Path) -> None:
    for name in ("first.weight", "second.weight"):
        wrong = last_bit(proved / "b.onnx", name, tmp_path / "wrong.onnx")
        model = onnx.load(wrong)
        stored = next(each for each in model.graph.initializer if each.name == name)
        stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored) * np.float32(1.01), name))
        onnx.save(model, wrong)
        assert main(["check", str(proved / "a.onnx"), str(wrong), *certified(tmp_path)]) == Exit.NOT_EQUIVALENT
        assert not (tmp_path / "c.json").exists()


def test_what_a_fold_leaves_as_an_affine_is_made_again_too(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    words = [str(tmp_path / "a.onnx"), "-o", str(tmp_path / "b.onnx"), "--leftover", "affine", "--merge", "never"]
    assert main(["fold", *words, *certified(tmp_path)]) == Exit.OK
    document = written(tmp_path)
    assert any(affine["lowered_to"] and affine["tensors"] for affine in document["affines"])
    pair = [str(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    assert main(["check", *pair, *certified(tmp_path, "again.json")]) == Exit.OK
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "c.json").read_bytes()


def test_a_note_in_the_metadata_and_data_beside_the_model_are_no_difference(tmp_path: Path) -> None:
    net = Net()
    net.batch_norm(net.conv("x", 3, 64), 64)
    model = net.model({"x": (1, 3, 8, 8)})
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    out = ["-o", str(tmp_path / "b.onnx"), "--provenance"]
    assert main(["fold", str(tmp_path / "a.onnx"), *out, *certified(tmp_path)]) == Exit.OK
    assert len(written(tmp_path)["reference"]["external"]) == 1
    assert verify(tmp_path, "a.onnx", "b.onnx") == Exit.OK
    damaged = (tmp_path / "a.data").read_bytes()
    (tmp_path / "a.data").write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    assert verify(tmp_path, "a.onnx", "b.onnx") == Exit.NOT_EQUIVALENT


def test_expressions_come_back_as_they_were() -> None:
    leaf = Leaf("a")
    part = Part(leaf, np.array([3, 2, 1, 7, 7, 7, -1, -1]), scaled=False, shifted=0.1)
    origins: list[Origin] = [part, Chain(part, Leaf("b")), Joined(leaf, Part(leaf)), Stack(((part, 8), (None, 2)))]
    table = _Origins()
    places = [table.place(origin) for origin in origins]
    rows = json.loads(json.dumps(table.rows))
    found: list[Origin] = []
    for row in rows:
        found.append(_origin(row, found.__getitem__))
    for place, origin in zip(places, origins, strict=True):
        assert type(found[place]) is type(origin)
        assert names_of(found[place]) == names_of(origin)
    again = found[places[0]]
    assert isinstance(again, Part)
    assert np.array_equal(again.index, part.index)  # type: ignore[arg-type]
    assert (again.scaled, again.shifted) == (False, 0.1)
    assert sum("leaf" in row for row in rows) == 2


def test_reading_gives_the_records(proved: Path) -> None:
    given = certificate.read(proved / "c.json")
    assert given.report.outcomes[0].site.name == "bn1_node"
    assert any(isinstance(event, Absorbed) for event in given.report.absorbed)

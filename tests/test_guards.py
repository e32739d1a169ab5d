"""Each guard switched off makes the attack that it is there for come through, or be stopped by another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from attacks import archives, onnx_files
from attacks.attack import INSIDE, OUTSIDE, SECRET, Attack

import bnfold.errors
from bnfold.errors import Rejected
from bnfold.frontends.onnx import external, reading
from bnfold.loading import archives as checked_archives
from bnfold.loading import audit, checkpoints, kinds, load, programs

ATTACKS = {attack.name: attack for attack in (*onnx_files.ATTACKS, *archives.ATTACKS)}


def off(*_: Any, **__: Any) -> Any:
    """Finds nothing."""
    return None


def nothing(*_: Any) -> Iterator[str]:
    return iter(())


def unsafe_load(file: Any, **options: Any) -> Any:
    return ORIGINAL_LOAD(file, **(options | {"weights_only": False}))


ORIGINAL_LOAD = torch.load

GUARDS: dict[str, tuple[dict[tuple[Any, str], Any], str]] = {
    "names of data files": ({(external, "_odd"): off}, "the folder above, from an initializer"),
    "names of data files in training": ({(external, "_odd"): off}, "the folder above, from training"),
    "links": ({(external, "_leads_elsewhere"): lambda *_: False}, "a symbolic link out of the folder"),
    "hard links": ({(external, "_leads_elsewhere"): lambda *_: False}, "a hard link out of the folder"),
    "regular files": ({(external.stat, "S_ISREG"): lambda mode: True}, "a pipe out of the folder"),
    "offsets": ({(reading, "check_external"): off}, "an offset behind the end"),
    "limits: nesting": ({(reading, "check_limits"): off}, "subgraphs nested 20 deep"),
    "limits: names": ({(reading, "check_limits"): off}, "a name of 100,000 characters"),
    "limits: functions": ({(reading, "check_limits"): off}, "functions that call 500 deep"),
    "limits: bytes": ({(reading, "check_limits"): off}, "a shape that overflows"),
    "sizes of tensors": ({(reading, "_complaint"): off}, "fewer numbers inside than the shape says"),
    "the checker": ({(onnx.checker, "check_model"): off}, "a cycle"),
    "truncation": (
        {(kinds, "_onnx_kind"): lambda *_: kinds.Kind.ONNX, (reading, "_ends_early"): off},
        "half a file",
    ),
    "archives": ({(checked_archives, "contradictions"): nothing}, "archive: two members of one name"),
    "archives: names": ({(checked_archives, "contradictions"): nothing}, "archive: a member above its folder"),
    "archives: bytes": ({(checked_archives, "contradictions"): nothing}, "archive: bytes behind"),
    "archives: gaps": (
        {(checked_archives, "_end_to_end"): lambda *_: True},
        "archive: a member that no directory knows",
    ),
    "archives: directories": (
        {(checked_archives, "contradictions"): nothing},
        "archive: a second directory",
    ),
    "archives: inflation": ({(checked_archives, "MAX_INFLATED"): 1 << 40}, "archive: 80 MB in 100 kB"),
    "programs": ({(programs, "complaints"): nothing}, "program: code in a shape"),
    "programs: payloads": ({(audit, "_payloads"): nothing}, "program: a pickled weight"),
    "programs: sample inputs": ({(audit, "_pickled_member"): nothing}, "program: an unsafe sample input"),
    "programs: expressions": ({(audit, "_is_small"): lambda *_: True}, "program: a size as exponent in a shape"),
    "programs: operators": ({(audit, "REACHES_OUT"): re.compile("")}, "program: a file that an operator writes"),
    "programs: text": ({(audit, "_odd"): nothing}, "program: a library as operator"),
    "pickles": (
        {(checkpoints, "_unsafe_globals"): lambda *_: [], (torch, "load"): unsafe_load},
        "pickle that runs code, zipped",
    ),
    "old pickles": ({(torch, "load"): unsafe_load}, "pickle that runs code, as before torch 1.6"),
    "plain pickles": ({(kinds, "_legacy_kind"): off}, "pickle without torch"),
}


def outcome(attack: Attack, folder: Path) -> tuple[str, str] | None:
    """The code and the sentence of a refusal."""
    for name in (INSIDE, OUTSIDE):
        (folder / name).mkdir(parents=True)
    (folder / OUTSIDE / SECRET).write_bytes(onnx_files.NUMBERS.tobytes())
    try:
        load(attack.build(folder))
    except Rejected as refusal:
        return refusal.code, str(refusal)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def is_as_it_must_be(attack: Attack, found: tuple[str, str] | None) -> bool:
    return found is not None and found[0] == attack.code and attack.says in found[1]


@pytest.mark.parametrize("guard", GUARDS)
def test_without_the_guard_the_attack_is_seen_to_come_through(
    guard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, name = GUARDS[guard]
    monkeypatch.chdir(tmp_path)
    assert is_as_it_must_be(ATTACKS[name], outcome(ATTACKS[name], tmp_path / "with"))
    for (holder, attribute), replacement in patches.items():
        monkeypatch.setattr(holder, attribute, replacement)
    assert not is_as_it_must_be(ATTACKS[name], outcome(ATTACKS[name], tmp_path / "without"))


def test_without_cleaning_a_name_reaches_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack: Callable[[Path], Path] = onnx_files.cyclic
    (tmp_path / INSIDE).mkdir()
    path = attack(tmp_path)
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.graph.node[0].input[1] = "\x1b[31m"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Rejected) as cleaned:
        load(path)
    monkeypatch.setattr(bnfold.errors, "clean", lambda text: text)
    with pytest.raises(Rejected) as raw:
        load(path)
    assert str(cleaned.value).isprintable()
    assert not str(raw.value).isprintable()

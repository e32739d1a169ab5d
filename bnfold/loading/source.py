"""How a model file is to be read, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """What the caller allows and adds. Code is named by the caller (`arch`), never by a file.

    `linked_data` are folders into which the data files of an ONNX model may be links.
    `typed` are the words of the command line, for a suggested command to repeat; without them it is an export of the
    file with what is known here, and `given` (`-i`, `1,3,224,224`, ...).
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    app_dir: Path = Path()
    weights_key: str | None = None
    trust_pickle: bool = False
    trust_types: tuple[str, ...] = ()
    no_limits: bool = False
    linked_data: tuple[Path, ...] = ()
    typed: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


def brief(text: str) -> str:
    """As much as a sentence takes of what a file or another program says: the first line, 200 characters of it.

    How its characters may be shown is the affair of the error in which it stands.
    """
    return text.strip().partition("\n")[0][:200]


@dataclass(frozen=True)
class Loaded:
    """A model that was read.

    `kind` is the word of the report (`onnx`, `pt2`, `torchscript`, `state_dict`, `checkpoint`, `pickled_module`,
    `safetensors`). `model` is an `onnx_ir.Model`, an `ExportedProgram`, an `nn.Module` in eval mode, or a
    `ScriptModule` (kind `torchscript`, see `to_program`). `files` are all files that were read, `path` first.
    `input_guess` is an `--input` that would fit the first layer, for use in suggestions only.
    """

    kind: str
    model: Any
    path: Path
    nbytes: int
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    input_guess: str | None = None

"""What typer says about a call that cannot be meant, as one sentence and the command to run next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from bnfold.errors import UsageError
from bnfold.reports.text import did_you_mean, nearest

EXAMPLES = {
    "export": "bnfold export model.pt",
    "fold": "bnfold fold model.onnx",
    "inspect": "bnfold inspect model.onnx",
    "check": "bnfold check model.onnx model.folded.onnx",
    "bench": "bnfold bench model.onnx model.folded.onnx",
}

HINTS = {
    ("export", "--dtype"): "half precision is kept, not made: store the weights in it, then --dtype keep "
    "(docs/how-to/half.md)"
}


def is_usage(error: BaseException) -> bool:
    """Whether typer raised this about the command line (its classes have moved between its versions)."""
    return callable(getattr(error, "format_message", None)) and getattr(error, "exit_code", None) in (1, 2)


def usage_error(error: Any, words: Sequence[str] = ()) -> UsageError:
    """The same complaint in bnfold's words; `words` are the command line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "bnfold"
    name = command.rpartition(" ")[2]
    kind = type(error).__name__
    if kind == "MissingParameter":
        metavar = error.param.metavar or error.param.name.upper()
        return UsageError(f"{command} needs {metavar}", code="missing-argument", hint=EXAMPLES.get(name))
    if kind == "NoSuchOption":
        return _no_flag(command, error.option_name, context)
    if kind == "BadParameter" and error.param is not None:
        hint = HINTS.get((name, max(error.param.opts, key=len))) or _chosen(error, words) or f"{command} --help"
        return UsageError(_bad_value(error), code="bad-value", hint=hint)
    message = _sentence(error.format_message())
    if message == "missing command":
        return UsageError("no command was given", code="missing-command", hint="bnfold --help")
    return UsageError(message, hint=f"{command} --help")


def _no_flag(command: str, flag: str, context: Any) -> UsageError:
    """It is another command's flag, or one is spelt like it."""
    others = _others_with(flag, context) if context and context.parent else []
    if others:
        told = f"; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
        hint = f"bnfold {others[0]} --help"
    else:
        told, hint = did_you_mean(flag, _flags(context.command, context) if context else []), f"{command} --help"
    return UsageError(f"{command} has no flag {flag}{told}", code="unknown-flag", hint=hint)


def _bad_value(error: Any) -> str:
    flag = max(error.param.opts, key=len)
    if error.param.param_type_name == "argument":
        flag = error.param.metavar or flag
    return f"the value of {flag} cannot be used: {_sentence(error.message.removeprefix('Value error, '))}"


def _chosen(error: Any, words: Sequence[str]) -> str | None:
    """The same command with a word that the flag takes: the nearest, else the default. None where it takes any."""
    found = re.search(r"'(.*)' is not one of (.*)", error.message)
    if found is None:
        return None
    value, known = found[1], re.findall(r"'([^']*)'", found[2])
    meant = nearest(value, known) or error.param.default
    for index, word in enumerate(words):
        flag, equals, given = word.partition("=")
        rest = [given] if equals else list(words[index + 1 : index + 2])
        if meant in known and flag in error.param.opts and rest == [value]:
            end = index + (1 if equals else 2)
            return shlex.join(["bnfold", *words[:index], flag, meant, *words[end:]])
    return None


def _flags(command: Any, context: Any) -> list[str]:
    return [flag for parameter in command.get_params(context) for flag in (*parameter.opts, *parameter.secondary_opts)]


def _others_with(flag: str, context: Any) -> list[str]:
    siblings = getattr(context.parent.command, "commands", {})
    return [name for name, command in siblings.items() if flag in _flags(command, context)]


def _sentence(text: str) -> str:
    """One line, beginning small and ending without a full stop, as every message of bnfold does."""
    line = " ".join(text.split()).rstrip(".")
    return line[:1].lower() + line[1:]

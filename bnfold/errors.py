"""Every failure is one sentence, a stable code and an exit code."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from enum import IntEnum

_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


class Exit(IntEnum):
    """What the process returns; the table of the command-line interface."""

    OK = 0
    NOT_EQUIVALENT = 1
    USAGE = 2
    POLICY = 3
    REJECTED = 4
    ENVIRONMENT = 5
    GATE = 6
    NO_VERDICT = 7
    INTERNAL = 70
    INTERRUPTED = 130
    TERMINATED = 143


def clean(text: str) -> str:
    """The text on one line, with every character that could steer a terminal written as an escape: control and format
    characters (ANSI escapes, bidi overrides, zero width), separators, surrogates, private use."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def _escaped(char: str) -> str:
    return " " if char in "\n\r\t" else char.encode("unicode_escape").decode("ascii")


class BnfoldError(Exception):
    """The base of every error that bnfold raises on purpose.

    `str(error)` is one sentence; `code` is kebab-case and stable; `hint` is what to do next (often a complete command).
    `details` are for programs, as JSON holds them. Names from a file stand in it as they may be shown.
    """

    exit_code: Exit = Exit.INTERNAL
    default_code: str = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        details: Mapping[str, list[str]] | None = None,
    ) -> None:
        super().__init__("\n".join(map(clean, message.split("\n"))))
        self.code = code or self.default_code
        self.hint = hint
        self.details = {key: list(map(clean, texts)) for key, texts in (details or {}).items()}


class UsageError(BnfoldError):
    """The call cannot be meant: a flag is missing or contradicts another."""

    exit_code = Exit.USAGE
    default_code = "usage"


class Rejected(BnfoldError):
    """The model is unreadable, invalid or refused."""

    exit_code = Exit.REJECTED
    default_code = "rejected"


class EnvironmentFailure(BnfoldError):
    """Disk, permission, a provider: not the model's fault."""

    exit_code = Exit.ENVIRONMENT
    default_code = "environment"


class MissingDependency(EnvironmentFailure):
    """An optional package is needed and not installed; the hint is the command that installs it."""

    default_code = "missing-dependency"


class PolicyViolation(BnfoldError):
    """The result is correct, but the caller asked for more (`--fail-on-unfolded`)."""

    exit_code = Exit.POLICY
    default_code = "policy"


class NotEquivalent(BnfoldError):
    """A comparison showed a difference that rounding does not explain."""

    exit_code = Exit.NOT_EQUIVALENT
    default_code = "not-equivalent"


class NoVerdict(BnfoldError):
    """Nothing could be compared, so nothing was shown."""

    exit_code = Exit.NO_VERDICT
    default_code = "no-verdict"


class GateMissed(BnfoldError):
    """A `--gate` of bench does not hold."""

    exit_code = Exit.GATE
    default_code = "gate"

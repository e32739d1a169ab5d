"""Every flag, said once.

A command takes whole groups of flags: `flat` shows typer the fields of each group as flags of their own, and hands the
command the group.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from bnfold.errors import UsageError
from bnfold.run import CheckOptions, OutputOptions, RunOptions

if TYPE_CHECKING:
    from bnfold.folding import FoldOptions
    from bnfold.loading import Source
    from bnfold.reports.report import Policy

_report = partial(typer.Option, rich_help_panel="Report")
_source = partial(typer.Option, rich_help_panel="Reading the model")
_run = partial(typer.Option, rich_help_panel="Running models")
_fold = partial(typer.Option, rich_help_panel="Folding")
_check = partial(typer.Option, rich_help_panel="Checking")

Texts = list[str]


def reasons(incomplete: str) -> list[str]:
    """What the shell may complete to the code of a reason."""
    from bnfold.graph import Reason

    return [reason.code for reason in Reason if reason.code.startswith(incomplete)]


def explained(incomplete: str) -> list[str]:
    """What the shell may complete to the code of a reason or a finding."""
    from bnfold.reports.conditions import Condition

    return [*reasons(incomplete), *(each.code for each in Condition if each.code.startswith(incomplete))]


@dataclass(frozen=True)
class ReportFlags:
    """What every command takes."""

    report: Annotated[
        list[Path],
        _report("--report", metavar="FILE", help="Write a report: .json, .html, .md or .xml (JUnit); repeatable."),
    ] = field(default_factory=list)
    json: Annotated[bool, _report("--json", help="The JSON report on stdout, everything else on stderr.")] = False
    quiet: Annotated[bool, _report("-q", "--quiet", help="Errors only.")] = False
    debug: Annotated[bool, _report("--debug", help="A traceback on an internal error.")] = False


@dataclass(frozen=True)
class SourceFlags:
    """What every command takes that reads models."""

    arch: Annotated[
        str | None,
        _source("--arch", metavar="PKG.MOD:CALLABLE", help="The code that builds the network for a state_dict."),
    ] = None
    arch_arg: Annotated[
        Texts,
        _source("--arch-arg", metavar="KEY=VALUE", help="An argument of it, JSON or a string; repeatable."),
    ] = field(default_factory=list)
    app_dir: Annotated[
        Path, _source("--app-dir", metavar="DIR", help="First on the import path, with --arch and for trusted pickles.")
    ] = Path()
    weights_key: Annotated[
        str | None,
        _source(
            "--weights-key",
            metavar="KEY",
            help="Which dict of a checkpoint; else ema, model, state_dict (by any usual name), the top level.",
        ),
    ] = None
    trust_pickle: Annotated[bool, _source("--trust-pickle", help="Let this file run code.")] = False
    trust_type: Annotated[Texts, _source("--trust-type", metavar="PKG.CLASS", help="Allow one class; repeatable.")] = (
        field(default_factory=list)
    )
    no_limits: Annotated[bool, _source("--no-limits", help="Lift the size and nesting limits.")] = False
    allow_linked_data: Annotated[
        list[Path],
        _source(
            "--allow-linked-data",
            metavar="FOLDER",
            help="Let data files of an ONNX model be links into this folder, a cache for instance; repeatable.",
        ),
    ] = field(default_factory=list)

    def source(self, typed: tuple[str, ...] = (), given: tuple[str, ...] = ()) -> Source:
        """As the loader takes it, with words that a suggested command should repeat."""
        from bnfold.loading import Source

        return Source(
            arch=self.arch,
            arch_args=dict(_key_value(text, "--arch-arg") for text in self.arch_arg),
            app_dir=self.app_dir,
            weights_key=self.weights_key,
            trust_pickle=self.trust_pickle,
            trust_types=tuple(self.trust_type),
            no_limits=self.no_limits,
            linked_data=tuple(self.allow_linked_data),
            typed=typed,
            given=given,
        )


@dataclass(frozen=True)
class InputFlags:
    """What the inputs of a model look like."""

    input: Annotated[
        Texts,
        _run(
            "-i",
            "--input",
            metavar="[NAME:]DIMS[:DTYPE]",
            help="An input: 1,3,224,224 or image:batch,3,h,w:float16; a word is a dynamic axis; repeatable.",
        ),
    ] = field(default_factory=list)
    dim: Annotated[
        Texts,
        _run(
            "--dim",
            metavar="NAME=N[,N...]",
            help="Sizes of a dynamic axis when running; without it batch=1,2 and others in turn; repeatable.",
        ),
    ] = field(default_factory=list)

    def options(self) -> RunOptions:
        """As the pipeline takes them."""
        return RunOptions(inputs=tuple(self.input), dims=tuple(self.dim))

    def words(self) -> tuple[str, ...]:
        """The flags that say what the inputs are, as they were typed."""
        inputs = [word for text in self.input for word in ("-i", text)]
        return (*inputs, *(word for text in self.dim for word in ("--dim", text)))


@dataclass(frozen=True)
class RunFlags(InputFlags):
    """What every command takes that runs models."""

    data: Annotated[
        Path | None,
        _run("--data", metavar="PATH", help="Inputs to run besides the seeded families: .npz, .npy or a folder."),
    ] = None
    seed: Annotated[int, _run("--seed", metavar="N", min=0, help="The seed of the inputs.")] = 0
    provider: Annotated[
        str, _run("--provider", metavar="NAME", help="cpu, cuda, tensorrt, openvino or a provider's full name.")
    ] = "cpu"
    provider_option: Annotated[
        Texts, _run("--provider-option", metavar="K=V", help="An option of the provider; repeatable.")
    ] = field(default_factory=list)
    threads: Annotated[
        int | None,
        _run("--threads", metavar="N", min=1, help="Threads; without it 1 in bench, the runtime's own elsewhere."),
    ] = None

    def options(self) -> RunOptions:
        """As the pipeline takes them."""
        return RunOptions(
            inputs=tuple(self.input),
            dims=tuple(self.dim),
            data=self.data,
            seed=self.seed,
            provider=self.provider,
            provider_options=tuple(self.provider_option),
            threads=self.threads,
        )


@dataclass(frozen=True)
class PolicyFlags:
    """What makes a correct result unwelcome."""

    fail_on_unfolded: Annotated[
        bool, _fold("--fail-on-unfolded", help="Exit 3 if a batch norm is left for a reason not accepted.")
    ] = False
    accept: Annotated[
        Texts,
        _fold(
            "--accept",
            metavar="CODE",
            help="A reason to accept (see bnfold explain); repeatable.",
            autocompletion=reasons,
        ),
    ] = field(default_factory=list)

    def policy(self) -> Policy:
        """As the report judges by it."""
        from bnfold.reports.report import Policy

        return Policy(self.fail_on_unfolded, tuple(self.accept))


@dataclass(frozen=True)
class FoldFlags:
    """What the commands take that fold."""

    include: Annotated[
        Texts, _fold("--include", metavar="GLOB", help="Only these batch norms, by node or module path; repeatable.")
    ] = field(default_factory=list)
    exclude: Annotated[Texts, _fold("--exclude", metavar="GLOB", help="Not these batch norms; repeatable.")] = field(
        default_factory=list
    )
    merge: Annotated[Literal["auto", "never"], _fold("--merge", help="Merge linear branches.")] = "auto"
    leftover: Annotated[
        Literal["keep", "affine"],
        _fold("--leftover", help="A batch norm that stays: as it is, or as Mul and Add for runtimes without one."),
    ] = "keep"
    max_growth: Annotated[
        float, _fold("--max-growth", metavar="X", min=1.0, help="File growth allowed for copies of shared weights.")
    ] = 1.10
    provenance: Annotated[bool, _fold("--provenance", help="Note in the model's metadata what was folded.")] = False
    dry_run: Annotated[bool, _fold("--dry-run", help="Do all but write.")] = False
    force: Annotated[bool, _fold("-f", "--force", help="Overwrite a file of a derived name or another kind.")] = False

    def options(self) -> FoldOptions:
        """As the engine takes them."""
        from bnfold.folding import FoldOptions

        include, exclude = tuple(self.include), tuple(self.exclude)
        return FoldOptions(include, exclude, self.max_growth, self.leftover, self.merge)

    def output(self, out: Path | None) -> OutputOptions:
        """What is written, and where."""
        return OutputOptions(out, self.force, self.dry_run, self.provenance)


@dataclass(frozen=True)
class CheckFlags:
    """How the commands that fold check what they made."""

    check: Annotated[bool, _check("--check/--no-check", help="Check the result before it is written.")] = True
    level: Annotated[
        Literal["auto", "static", "full"],
        _check("--level", help="static: no execution; full: a skipped layer is no verdict."),
    ] = "auto"
    save_failure: Annotated[
        Path | None,
        _check("--save-failure", metavar="DIR", help="Keep the inputs and the smallest part that fails here."),
    ] = None

    def options(self) -> CheckOptions:
        """As the pipeline takes them."""
        return CheckOptions(self.check, self.level, self.save_failure)


def flat(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with each parameter that is a group of flags replaced by these flags."""
    hints = get_type_hints(command, include_extras=True)
    del hints["return"]
    groups: dict[str, type[Any]] = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }

    @wraps(command)
    def call(**values: Any) -> Any:
        taken = {
            name: group(**{item.name: values.pop(item.name) for item in fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **taken)

    parameters = list(_parameters(inspect.signature(command), hints))
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(signature: inspect.Signature, hints: dict[str, Any]) -> Iterator[inspect.Parameter]:
    for name, parameter in signature.parameters.items():
        group = hints[name]
        if not is_dataclass(group):
            yield parameter.replace(annotation=group, kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        types = get_type_hints(group, include_extras=True)
        for item in fields(group):
            yield inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=_default(item), annotation=types[item.name]
            )


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _key_value(text: str, flag: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{flag} {text!r} is not of the form KEY=VALUE", hint=f"{flag} KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value

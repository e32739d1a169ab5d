"""`bnfold demo`: the main commands on a small model that ships with bnfold, each shown as one would type it."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from bnfold.errors import EnvironmentFailure
from bnfold.run import OutputOptions, Run


@dataclass
class Demo:
    """The demonstration in a folder (None: a fresh temporary one, which stays); `steps` are what was done."""

    folder: Path | None
    steps: list[tuple[tuple[str, ...], Run]] = field(default_factory=list)

    def work(self, run: Run) -> None:
        """Inspect, fold and check; `run` tells of the fold."""
        from bnfold import checking, pipeline

        model = self._unpack()
        folded = model.with_name("demo.folded.onnx")
        inspected, checked = (Run(command, progress=run.progress) for command in ("inspect", "check"))
        self.steps.append((("inspect", str(model)), inspected))
        pipeline.run_inspect(inspected, model)
        self.steps.append((("fold", str(model), "-o", str(folded)), run))
        pipeline.run_fold(run, model, output=OutputOptions(out=folded))
        self.steps.append((("check", str(model), str(folded)), checked))
        checking.run_check(checked, model, folded)

    def show(self) -> str:
        """The steps as a terminal would show them."""
        return "\n".join(self._screens())

    def _screens(self) -> Iterator[str]:
        from bnfold.reports import console
        from bnfold.reports.report import Report

        for words, run in self.steps:
            report = Report(replace(run, command=words[0]), words, datetime.now(UTC).isoformat(), 0.0)
            yield f"$ {shlex.join(('bnfold', *words))}\n{console.render(report, sys.stdout)}"

    def _unpack(self) -> Path:
        content = files("bnfold").joinpath("data", "demo.onnx").read_bytes()
        try:
            folder = self.folder or Path(tempfile.mkdtemp(prefix="bnfold-demo-"))
            folder.mkdir(parents=True, exist_ok=True)
            model = folder / "demo.onnx"
            model.write_bytes(content)
        except OSError as error:
            raise EnvironmentFailure(
                f"the demo's files could not be written: {error.strerror} ({error.filename})", code="demo-not-writable"
            ) from error
        return model

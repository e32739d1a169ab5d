"""Where a command ran, told without importing what it tells of."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bnfold.run import Run

PACKAGES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxsim",
    "torch",
    "safetensors",
)


def environment(run: Run) -> dict[str, Any]:
    """Python, machine and installed packages, as the report's `environment`."""
    runtime = run.check.runtime if run.check else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "threads": _threads(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name)) is not None},
        "providers": list(run.providers) or ([runtime.provider] if runtime else []),
    }


def tool_version() -> str:
    """The version of bnfold; a source tree that is not installed has none."""
    return package_version("bnfold") or "0+unknown"


def package_version(name: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _threads() -> int | None:
    """How many threads this process may run at once."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def processor() -> str:
    """The processor's name: Linux tells it in a file only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()

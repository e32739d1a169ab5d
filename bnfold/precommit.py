"""The pre-commit hook: `bnfold inspect --fail-on-unfolded` on each of many ONNX files.

    python -m bnfold.precommit [FLAG...] MODEL.onnx [MODEL.onnx...]

pre-commit appends the files that are staged to the flags of the hook's configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bnfold.cli import main as bnfold
from bnfold.errors import Exit


def main(words: Sequence[str]) -> int:
    """Inspect each model; the exit code of the first that is not as it should be."""
    models = [word for word in words if word.lower().endswith(".onnx")]
    flags = [word for word in words if word not in models]
    codes = []
    for model in models:
        print(f"{model}:", flush=True)
        codes.append(bnfold(["inspect", "--fail-on-unfolded", *flags, "--", model]))
    return next((code for code in codes if code), int(Exit.OK))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Other people's optimisers, each in a process of its own: pairs of paths on standard input, one line each.

    python benchmarks/blind/tools.py onnxsim <pairs.txt

What a tool refuses is not written; if it takes the process with it, the rest is not written either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from peers import CONTENDERS  # noqa: E402

TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "bnfold's own fold": CONTENDERS["bnfold"],
    "bnfold's own fold, without merging": CONTENDERS["bnfold, merge never"],
    "onnxsim": CONTENDERS["onnxsim"],
    "onnxslim": CONTENDERS["onnxslim"],
    "onnxoptimizer": CONTENDERS["onnxoptimizer"],
    "onnxscript.optimizer": CONTENDERS["onnxscript"],
    "onnxscript.optimizer, then onnxsim": CONTENDERS["onnxscript+onnxsim"],
    "onnxruntime's offline optimiser, basic": CONTENDERS["onnxruntime"],
    "onnxruntime's offline optimiser, extended": CONTENDERS["onnxruntime-extended"],
}


def main() -> None:
    tool = TOOLS[sys.argv[1]]
    for line in sys.stdin.read().splitlines():
        source, target = (Path(each) for each in line.split("\t"))
        try:
            tool(source, target)
        except Exception as error:  # whatever strangers raise; the pair is then not made
            print(f"{source.name}: {type(error).__name__}: {error}"[:200], file=sys.stderr)


if __name__ == "__main__":
    main()

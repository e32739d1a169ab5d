"""One contender, one file, one process: what `zoo.py` measures from outside.

    python benchmarks/peers.py run bnfold in.onnx out.onnx
    python benchmarks/peers.py measure out.onnx answers.npz        what is left, and how wrong it is, as JSON
    python benchmarks/peers.py tables --cache zoo                  the tables of docs/benchmarks.md (`peer_tables.py`)

A contender is imported when it is asked for, so that the process holds nothing of the others. onnxruntime writes the
graph of its level BASIC: what EXTENDED adds are operators of its own, which no other runtime reads, and
`onnxruntime-extended` is there to show them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True

# How torch.onnx.export was called, and what merges branches by the network's own code, in the words of the tables.
PLAIN, DEFAULT = "dynamo=True, optimize=False", "dynamo=True, optimize=True"
OWN = "reparameterize_model"


def with_bnfold(source: Path, target: Path) -> None:
    import bnfold

    folded = bnfold.fold(source)
    bnfold.save(folded.model, target)
    target.with_suffix(".rows.json").write_text(json.dumps(rows(folded.report)))


def with_bnfold_alone(source: Path, target: Path) -> None:
    """Folded and not merged."""
    import bnfold

    bnfold.save(bnfold.fold(source, merge="never").model, target)


def with_onnxscript(source: Path, target: Path) -> None:
    import onnx
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)


def with_onnxsim(source: Path, target: Path) -> None:
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, target)


def with_both(source: Path, target: Path) -> None:
    """onnxscript takes away what torch's exporter adds to a convolution, at which the others stop."""
    import onnx
    import onnxscript.optimizer
    import onnxsim

    simplified, _ = onnxsim.simplify(onnxscript.optimizer.optimize(onnx.load(source)))
    onnx.save(simplified, target)


def with_onnxslim(source: Path, target: Path) -> None:
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def with_onnxoptimizer(source: Path, target: Path) -> None:
    import onnx
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    onnx.save(onnxoptimizer.optimize(onnx.load(source), passes, fixed_point=True), target)


def with_onnxruntime(source: Path, target: Path, level: str = "ORT_ENABLE_BASIC") -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def with_onnxruntime_extended(source: Path, target: Path) -> None:
    with_onnxruntime(source, target, "ORT_ENABLE_EXTENDED")


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "bnfold": with_bnfold,
    "bnfold, merge never": with_bnfold_alone,
    "onnxscript": with_onnxscript,
    "onnxsim": with_onnxsim,
    "onnxscript+onnxsim": with_both,
    "onnxslim": with_onnxslim,
    "onnxoptimizer": with_onnxoptimizer,
    "onnxruntime": with_onnxruntime,
    "onnxruntime-extended": with_onnxruntime_extended,
}


def rows(report: Any) -> list[dict[str, Any]]:
    """What became of each affine, as plain data."""
    return [
        {
            "name": outcome.site.name,
            "module": outcome.site.module,
            "is_norm": outcome.is_norm,
            "channels": outcome.channels,
            "rule": outcome.rule,
            "into": [site.name for site in outcome.into],
            "via": [site.name for site in outcome.via],
            "reason": outcome.refusal and outcome.refusal.reason.code,
            "blocker": outcome.refusal and outcome.refusal.blocker,
            "also": list(outcome.refusal.also) if outcome.refusal else [],
        }
        for outcome in report.outcomes
    ]


def measure(candidate: Path, answers: Path) -> dict[str, Any]:
    """Counts, and the largest error on the stored inputs in onnxruntime with its own optimisation off.

    The error is `max |y - y64| / max |y64|`, where y64 is the network in float64.
    """
    import numpy as np
    import onnxruntime
    from counting import count

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(candidate), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    stored = np.load(answers)
    results = [(session.run(None, {name: stored[f"x{i}"]})[0], stored[f"y{i}"]) for i in range(len(stored.files) // 2)]
    return asdict(count(candidate)) | {"error": max(error(got, exact) for got, exact in results)}


def error(got: Any, exact: Any) -> float:
    """The largest deviation, relative to the largest value; infinite where the sizes differ or something is NaN."""
    import numpy as np

    if got.shape != exact.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - exact).max() / np.abs(exact).max())


def main() -> None:
    verb, *arguments = sys.argv[1:]
    if verb == "run":
        name, source, target = arguments
        CONTENDERS[name](Path(source), Path(target))
    elif verb == "measure":
        print(json.dumps(measure(*map(Path, arguments))))
    elif verb == "tables":
        import peer_tables

        peer_tables.main(arguments)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()

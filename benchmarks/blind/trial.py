"""The trial: `bnfold check` on every pair, each in a process of its own, and what it made of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

COMMITTED = sorted(Path(__file__).parent.glob("hashes*.txt"))
VERDICTS = ("failed", "verified", "proved", "no_verdict", "none")
RIGHT = {"mutant": ("failed",), "harmless": ("verified", "proved")}


def run(folder: Path, jobs: int, timeout: float) -> int:
    """Check all pairs, write results.json, print the confusion matrix; 1 if a verdict is wrong or missing."""
    pairs = intact(folder)
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda pair: pair | check(folder / f"{pair['number']:03d}", timeout), pairs))
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(table(results))
    wrong = [each for each in results if each["verdict"] not in RIGHT[each["label"]]]
    for each in wrong:
        print(f"{each['number']:03d} {each['label']:8} {each['verdict']:10} {each['what']} ({each['base']}, "
              f"effect {each['effect']}): {each['sentence']}")  # fmt: skip
    return 1 if wrong else 0


def intact(folder: Path) -> list[dict[str, Any]]:
    """The manifest's pairs, if its hashes are those of the files; says in which list beside this file it is."""
    text = (folder / "manifest.json").read_bytes()
    pairs: list[dict[str, Any]] = json.loads(text)["pairs"]
    for pair in pairs:
        for name, wanted in pair["sha256"].items():
            path = folder / f"{pair['number']:03d}" / name
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
                raise SystemExit(f"{path} is not the file of the manifest; make the material anew")
    digest = hashlib.sha256(text).hexdigest()
    known = next((file.name for file in COMMITTED if file.read_text().split()[1] == digest), None)
    of = f"that of {known}" if known else "that of NO committed list"
    print(f"manifest {digest}: {of}; {len(pairs)} pairs intact")
    return pairs


def check(place: Path, timeout: float) -> dict[str, Any]:
    """The verdict on one pair, or "none" with what came instead."""
    command = [sys.executable, "-m", "bnfold", "check", str(place / "reference.onnx"), str(place / "candidate.onnx")]
    started = time.perf_counter()
    try:
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"verdict": "none", "sentence": f"no answer in {timeout:g} s", "code": None, "seconds": timeout}
    seconds = round(time.perf_counter() - started, 1)
    return {"code": done.returncode, "seconds": seconds} | read(done.stdout, done.stderr)


def read(stdout: str, stderr: str) -> dict[str, Any]:
    try:
        report = json.loads(stdout)
    except json.JSONDecodeError:
        return {"verdict": "none", "sentence": stderr.strip()[-300:]}
    if report.get("check"):
        layers = [each for each in report["check"]["layers"] if each["status"] not in ("pass", "skipped")]
        return {"verdict": report["check"]["verdict"], "sentence": report["check"]["sentence"], "layers": layers}
    return {"verdict": "none", "sentence": (report.get("error") or {}).get("message", "no check in the report")}


def table(results: list[dict[str, Any]]) -> str:
    """How many of each label got each verdict."""
    counted = Counter((each["label"], each["verdict"]) for each in results)
    lines = [f"{'':10}" + "".join(f"{verdict:>12}" for verdict in VERDICTS)]
    for label in RIGHT:
        lines.append(f"{label:10}" + "".join(f"{counted[label, verdict]:>12}" for verdict in VERDICTS))
    return "\n".join(lines)

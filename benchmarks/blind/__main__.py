"""A blind trial of `bnfold check`: wrong models and harmless rewrites made without knowing how it works.

    python benchmarks/blind make FOLDER --cache zoo     at least 100 of each, and manifest.json with their hashes
    python benchmarks/blind run FOLDER --jobs 2         check them all; refuses files that are not those of the manifest
    python benchmarks/blind qdq --seeds 200             correct folds of fake-quantised chains

`hashes.txt` (seed 0) and `hashes_seed1.txt` were made before the check was run on any of it; what comes after cannot be
tuned to. To make the material, the packages of benchmarks/zoo.py are needed, and in `--cache` what
benchmarks/networks.py builds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True


def main() -> int:
    parser = argparse.ArgumentParser(description="A blind trial of bnfold check.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("make")
    made.add_argument("folder", type=Path)
    made.add_argument("--cache", type=Path, default=Path("zoo"))
    made.add_argument("--seed", type=int, default=0)
    ran = verbs.add_parser("run")
    ran.add_argument("folder", type=Path)
    chains = verbs.add_parser("qdq")
    chains.add_argument("--seeds", type=int, default=200)
    chains.add_argument("--out", type=Path)
    for each in (ran, chains):
        each.add_argument("--jobs", type=int, default=1)
        each.add_argument("--timeout", type=float, default=300)
    arguments = parser.parse_args()
    if arguments.verb == "make":
        import making

        making.make(arguments.folder, arguments.cache, arguments.seed)
        return 0
    if arguments.verb == "run":
        import trial

        return trial.run(arguments.folder, arguments.jobs, arguments.timeout)
    import qdq

    return qdq.run(arguments.seeds, arguments.jobs, arguments.timeout, arguments.out)


if __name__ == "__main__":
    sys.exit(main())

"""The table of docs/attacks.md, from a run of every attack."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.attack import Attack
from attacks.running import GROUPS, Result, results

TITLES = {"onnx": "ONNX files", "archives": "Archives, pickles and safetensors"}


def row(attack: Attack, result: Result, root: Path) -> str:
    said = result.stderr.strip().splitlines()[0].removeprefix("bnfold: ") if attack.code else "it is folded"
    for folder in sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: -len(str(path))):
        said = said.replace(f"{folder}/inside/", "")
    shown = said if len(said) <= 200 else f"{said[:200]}…"
    return f"| {attack.name} | `{attack.code or 'none'}` | {result.exit_code} | {shown.replace('|', chr(92) + '|')} |"


def main() -> None:
    parts = [
        "# Attacks",
        "Files that want more than to be read, and what bnfold says of each. `python tests/attacks > docs/attacks.md` "
        "makes this page; `tests/test_attacks.py` runs them all in CI and sees besides that none of them opened a file "
        "outside the folder of the model, started a process or a connection, imported what an ordinary run does not, "
        "or left a file.",
    ]
    for kind, attacks in GROUPS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            found = results(kind, root)
            lines = [row(attack, found[attack.name], root) for attack in attacks]
        head = "| attack | code | exit | what is said |\n|---|---|--:|---|"
        parts.append(f"## {TITLES[kind]}\n\n{head}\n" + "\n".join(lines))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()

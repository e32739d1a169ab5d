"""The pages of `docs/reasons`: their heads and their index are made from `Reason`, the rest is written by hand.

python tests/reason_pages.py        brings the heads and the index up to date
"""

from __future__ import annotations

from pathlib import Path

from bnfold.graph import Reason

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reasons"
BODY = "## Why\n"

INDEX = """# Reason codes

After this page you can find what a code in a report means and what to do. Codes never change: `--accept CODE` is safe.
In a terminal, `bnfold explain` lists the same, and `bnfold explain CODE` says more of one:

```console
$ bnfold explain padded-border
```

| Code | What the report says |
|---|---|
"""


def head(reason: Reason) -> str:
    """Everything above the hand-written part of a reason's page."""
    return (
        f"# `{reason.code}`\n\n"
        f"After this page you know what `{reason.code}` means and what to do about it.\n\n"
        f"**The report says:** {reason.message}.\n\n"
        f"**What to do:** {reason.remedy}.\n\n"
    )


def index() -> str:
    """The table of all reasons, in the order of `Reason`."""
    return INDEX + "".join(f"| [`{each.code}`]({each.code}.md) | {each.message} |\n" for each in Reason)


def page(reason: Reason, written: str) -> str:
    """The page with this hand-written part: what stands from the heading `Why` on."""
    return head(reason) + written[written.index(BODY) :]


def main() -> None:
    FOLDER.joinpath("index.md").write_text(index())
    for reason in Reason:
        path = FOLDER / f"{reason.code}.md"
        path.write_text(page(reason, path.read_text() if path.exists() else BODY))


if __name__ == "__main__":
    main()

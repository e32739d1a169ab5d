"""The command line: `flags` says what may be asked, `commands` what it means, `conduct` how it ends.

Nothing here imports a framework before a command runs, so that `--help` is quick.
"""

from bnfold.cli.entry import main

__all__ = ["main"]

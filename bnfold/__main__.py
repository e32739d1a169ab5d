"""`python -m bnfold`."""

import sys

from bnfold.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Files that want more than to be read, each made by a script, and what bnfold says of each.

    python tests/attacks          the table of docs/attacks.md

An attack is a row: how the file is built, and the code, exit code and words that it gets. `watched.py` runs the command
line in a process of its own in which every file that is opened, every process and every connection is noted.
"""

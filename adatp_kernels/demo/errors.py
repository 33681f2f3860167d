"""What goes wrong with a user's files and words, as opposed to with the program."""

from __future__ import annotations

from pathlib import Path

from adatp_kernels.mistakes import Mistake


class DemoError(Mistake):
    """A mistake of the user's that one line explains; the command line prints it and exits with 2."""


def check_output(path: Path, what: str) -> None:
    """Raise unless a file of this name can be written, before there is anything to write."""
    if not path.parent.is_dir():
        raise DemoError(f"no such directory for the {what}: {path.parent}")
    if path.is_dir():
        raise DemoError(f"--output: expected a file for the {what}, got a directory: {path}")

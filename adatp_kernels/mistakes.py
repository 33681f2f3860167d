"""What goes wrong with a user's files and words, as opposed to with the program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Mistake(Exception):
    """A mistake of the user's that one line explains; the command line prints it and exits with 2."""


def check_output(path: Path, what: str, suffixes: Sequence[str] = ()) -> None:
    """Raise unless a file of this name can be written, before there is anything to write.

    Parameters
    ----------
    path : Path
    what : str
        What is to be written, for the message.
    suffixes : sequence of str
        How its name may end, in lower case; any if there are none.

    Raises
    ------
    Mistake
    """
    if path.is_dir():
        raise Mistake(f"expected a file for the {what}, got a directory: {path}")
    if suffixes and path.suffix.lower() not in suffixes:
        raise Mistake(f"the {what}'s name must end with {' or '.join(suffixes)}, got {path}")
    folder = path.parent
    if not folder.is_dir():
        raise Mistake(f"no such directory for the {what}: {folder}")
    there = path.exists()
    if there and not path.is_file():
        raise Mistake(f"expected a file for the {what}, got something else: {path}")
    try:
        # Opened, not asked about: some folders, and some users, are not what their permissions say.
        with path.open("ab"):
            pass
    except OSError as error:
        raise Mistake(f"the {what} cannot be written to {path}: {error.strerror}") from error
    if not there:
        path.resolve().unlink()  # not a link that leads to it


def check_question(question: str) -> None:
    """Raise unless there are words to ask.

    Raises
    ------
    Mistake
    """
    if not question.strip():
        raise Mistake("--question: expected words, got none")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise Mistake("--question: expected text in UTF-8, got other bytes") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""What is said about a file that no frames can be had from."""

from __future__ import annotations

import os
from pathlib import Path


class VideoError(ValueError):
    """A file is no video that can be read; one line, which names the file and what it is."""


def shown(path: str | Path) -> str:
    """The path as one line that any terminal can print."""
    text = os.fsencode(path).decode("utf-8", errors="replace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

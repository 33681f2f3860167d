"""The numbers of the last state, a file for each Triton that has any: triton-VERSION.json, by GPU, case and kernel."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent
TOLERANCE = 1.05
# What is better smaller. How many matrix products there are follows from the tile.
COMPARED = ("instructions", "loop", "divisions", "barriers", "registers", "shared", "launches", "variants")

Table = dict[str, dict[str, dict[str, int | None]]]  # by GPU, then by case and kernel


def load(version: str) -> Table:
    """The committed numbers; none for a version that has no file."""
    path = _path(version)
    return json.loads(path.read_text()) if path.exists() else {}


def write(version: str, table: Table) -> Path:
    """Put the numbers of each GPU in `table` in the place of its old ones, a line for a kernel."""
    merged = load(version) | table
    gpus = []
    for gpu in sorted(merged):
        lines = [f"    {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in merged[gpu].items()]
        gpus.append(f"  {json.dumps(gpu)}: {{\n" + ",\n".join(lines) + "\n  }")
    path = _path(version)
    path.write_text("{\n" + ",\n".join(gpus) + "\n}\n")
    return path


def worse(now: dict[str, int | None], was: dict[str, int | None]) -> list[str]:
    """Which numbers are more than 5 % above what they were."""
    return [key for key, (new, old) in _pairs(now, was).items() if new > old * TOLERANCE]


def better(now: dict[str, int | None], was: dict[str, int | None]) -> list[str]:
    """Which numbers are below what they were."""
    return [key for key, (new, old) in _pairs(now, was).items() if new < old]


def _pairs(now: dict[str, int | None], was: dict[str, int | None]) -> dict[str, tuple[int, int]]:
    # A loop that multiplied nothing and does now has no number to be compared with, and the other way round.
    both = {key: (now.get(key), was.get(key)) for key in COMPARED}
    return {key: pair for key, pair in both.items() if None not in pair}


def _path(version: str) -> Path:
    return FOLDER / f"triton-{version}.json"

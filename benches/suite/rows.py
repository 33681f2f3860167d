"""Rows on disk: a line of JSON each, there as soon as it is known, so that whoever kills the suite loses none.

Only the standard library is needed. A step finds its file and its name in the environment; without them, as when somebody
starts a step by hand, rows are printed and not kept.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FILE, STEP = "ADATP_SUITE_ROWS", "ADATP_SUITE_STEP"


def add(row: dict[str, Any], path: Path | None = None) -> None:
    """Append a row, in one write that reaches the disk before this returns, and print it."""
    row = {"step": os.environ.get(STEP), **row} if "step" not in row else row
    if path is None:
        path = Path(os.environ[FILE]) if FILE in os.environ else None
    print(describe(row), flush=True)
    if path is None:
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # somebody was killed while writing
        os.write(file, (b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path | None = None) -> list[dict[str, Any]]:
    """All rows that are whole."""
    if path is None:
        path = Path(os.environ[FILE]) if FILE in os.environ else Path(os.devnull)
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def describe(row: dict[str, Any]) -> str:
    """A row as a line for a reader."""
    if "median" in row:
        case = " ".join(str(row[key]) for key in ("suite", "case", "variant", "mode") if key in row)
        over = f", {row['over floor']:.1f} × floor" if row.get("over floor") else ""
        return f"{case}: {1e6 * row['median']:.1f} µs{over}"
    return ", ".join(f"{key} {value}" for key, value in row.items())


def fail(why: str) -> int:
    """Print why a step cannot do its work; its exit code."""
    print(f"error: {why}", file=sys.stderr)
    return 2

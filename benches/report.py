"""What is made of the measured rows: speed-ups over the best baseline, a table, the results' JSON, log-log plots with the floor."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# What every benchmark of this process measured.
ROWS: list[dict] = []
KEYS = ("N", "T", "batch", "packed", "segments", "kept", "stage", "target")


def _case(row: dict) -> tuple:
    return row["suite"], row["mode"], *(row.get(key) for key in KEYS)


def add_speedups(rows: list[dict]) -> None:
    """To every row of ours, how many times faster it is than the fastest baseline of its case and mode."""
    best: dict[tuple, float] = {}
    for row in rows:
        if not row["ours"]:
            best[_case(row)] = min(row["median"], best.get(_case(row), float("inf")))
    for row in rows:
        row["speed-up"] = best[_case(row)] / row["median"] if row["ours"] and _case(row) in best else None


def table(rows: list[dict]) -> list[str]:
    """The rows as lines of text, a line each."""
    lines = [
        f"{'suite':<12} {'case':<44} {'variant':<28} {'mode':<10} {'median':>10} {'floor':>10} {'÷ floor':>8} {'speed-up':>8}"
    ]
    for row in rows:
        case = " ".join(f"{key}={row[key]}" for key in KEYS if key in row)
        gain = "" if row["speed-up"] is None else f"{row['speed-up']:.2f} ×"
        floor, over = (
            (f"{1e6 * row['floor']:.1f} µs", f"{row['over floor']:.1f}") if row.get("floor") else ("unknown", "")
        )
        lines.append(
            f"{row['suite']:<12} {case:<44} {row['variant']:<28} {row['mode']:<10} {1e6 * row['median']:>7.1f} µs "
            f"{floor:>10} {over:>8} {gain:>8}"
        )
    return lines


def write_results(path: Path, head: Mapping[str, Any], rows: Sequence[dict], **more: Any) -> None:
    """Device, commit, versions and ceilings, and all rows, in a file that appears only when it is whole.

    Parameters
    ----------
    head : mapping
        With "device", "versions" and "ceilings".
    """
    results = {**head, **commit(), "rows": list(rows), **more}
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(unfinished, path)


def commit() -> dict[str, Any]:
    """The commit, whether anything differs from it, and what the sources hash to, which is known without git, too."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "adatp_kernels", "csrc", "benches")
    digest = hashlib.sha256()
    for folder in ("adatp_kernels", "csrc", "benches"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".h", ".inl", ".cu", ".cuh", ".cpp"):
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(changed), "sources": digest.hexdigest()[:16]}


def plot(rows: list[dict], folder: Path) -> list[str]:
    """A picture per suite and mode: time over N, one line per variant, and the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["suite"], row["mode"]].append(row)
    written = []
    for (suite, mode), members in groups.items():
        across = "N" if len({row.get("N") for row in members}) > 1 or "target" not in members[0] else "target"
        figure, axes = pyplot.subplots(figsize=(8, 5))
        lines: dict[str, list[tuple]] = defaultdict(list)
        for row in members:
            rest = " ".join(f"{key}={row[key]}" for key in KEYS if key in row and key != across)
            lines[f"{row['variant']} {rest}"].append((row[across], 1e6 * row["median"]))
            lines[f"floor {rest}"].append((row[across], 1e6 * row["floor"]))
        for label, points in lines.items():
            style = (
                {"color": "black", "linewidth": 1, "linestyle": ":"} if label.startswith("floor") else {"marker": "o"}
            )
            axes.plot(*zip(*sorted(set(points)), strict=True), label=label, **style)
        axes.set(xscale="log", yscale="log", xlabel=across, ylabel="µs", title=f"{suite}, {mode}")
        axes.legend(fontsize=5)
        name = f"{suite}-{mode.replace(' ', '-')}.png"
        figure.savefig(folder / name, dpi=140, bbox_inches="tight")
        pyplot.close(figure)
        written.append(name)
    return written

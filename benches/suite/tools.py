"""Runs what watches kernels: a profiler for a handful of figures, and compute-sanitizer's three tools.

    python -m suite.tools profile score|select|native
    python -m suite.tools sanitize memcheck|racecheck|synccheck

A tool that is not here, or that may not do its work, is a row that says so. A sanitizer has passed if it says that it found
nothing and all results were right; when its time is up, it has not.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from suite import rows

METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct",
    "smsp__inst_executed.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)
ERRORS = 9  # the exit code that a sanitizer is told to give when it found something
# What each prints last; racecheck has a line of its own.
CLEAN = re.compile(r"(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed)")


def profile(what: str, dry: bool) -> int:
    """A row for every kernel of one call: score, select or native."""
    target = [sys.executable, "-m", "suite.small", "profile", what]
    tool = shutil.which("ncu")
    if tool is None or dry:
        return _without("ncu", tool, [*target, "--dry"] if dry else None, {"profile": what})
    command = [
        tool, "--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none",
        "--metrics", ",".join(METRICS), *target,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    print(done.stdout, done.stderr, flush=True)
    kernels = parse_profile(done.stdout)
    for kernel in kernels:
        rows.add({"profile": what, "status": "done", **kernel})
    if not kernels:
        why = next(
            (line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "Error" in line), ""
        )
        rows.add({"profile": what, "status": "failed", "code": done.returncode, "why": why[:300]})
    return 0 if kernels else 1


def parse_profile(text: str) -> list[dict[str, Any]]:
    """Kernel name and metrics, with their units, from what ncu prints as CSV: a header, a row of units, a row a kernel."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    names, units, *kernels = csv.reader(lines[first:])
    found = []
    for kernel in kernels:
        if len(kernel) != len(names):
            continue  # what the program printed behind it
        values = dict(zip(names, kernel, strict=True))
        unit = dict(zip(names, units, strict=True))
        metrics = {name: f"{values[name]} {unit[name]}".strip() for name in METRICS if name in values}
        found.append({"kernel": values.get("Kernel Name", "?"), **metrics})
    return found


def sanitize(name: str, dry: bool) -> int:
    """One row: passed, found something, or why neither."""
    target = [sys.executable, "-m", "suite.small", "sanitize"]
    tool = shutil.which("compute-sanitizer")
    if tool is None or dry:
        return _without("compute-sanitizer", tool, [*target, "--dry"] if dry else None, {"sanitizer": name})
    command = [tool, "--tool", name, "--error-exitcode", str(ERRORS), *target]
    # With PyTorch's caching allocator what lies behind a tensor is PyTorch's, too, and no access to it an error.
    caching = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "memcheck" else {}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, **caching})
    print(done.stdout, done.stderr, flush=True)
    status, why = verdict(done.returncode, done.stdout + done.stderr)
    rows.add({"sanitizer": name, "status": status, "why": why})
    return 0 if status == "passed" else 1


def verdict(code: int, output: str) -> tuple[str, str]:
    """What became of a sanitizer: "passed" only if it says so and everything was verified under it."""
    verified = re.search(r"^verified (\d+)", output, re.MULTILINE)
    summary = next((line for line in output.splitlines() if "SUMMARY" in line), "no summary")[:200]
    if code == 0 and verified and int(verified[1]) and CLEAN.search(output):
        return "passed", f"{verified[0]}; {summary}"
    if code == ERRORS:
        return "found errors", summary
    return "failed", f"exit {code}; {verified[0] if verified else 'nothing verified'}; {summary}"


def _without(name: str, tool: str | None, walk: Sequence[str] | None, row: dict[str, Any]) -> int:
    """The tool does not run; with `walk`, what it would watch does."""
    code = 0 if walk is None else subprocess.run(walk).returncode
    rows.add({**row, "status": "absent" if tool is None else "not run", "why": f"without {name}", "code": code})
    return code


if __name__ == "__main__":
    kind = {"profile": profile, "sanitize": sanitize}[sys.argv[1]]
    sys.exit(kind(sys.argv[2], "--dry" in sys.argv))

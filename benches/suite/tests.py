"""Runs the kernels' tests on all cores, and knows which timings a failure cancels: those of what it tests, and no others.

Without pytest-xdist every file is a process; without hypothesis its tests are skipped (`without_hypothesis`); without pytest
nothing runs but a row that says so. A test that fails is repeated in a process that only its own file's failures share: after
a fault of the GPU everything fails that the same process does later, whatever it tests.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from suite import rows
from suite.outcomes import FIRST, REPEAT

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS = 12

# Of a test file's name a part, and the operations on Triton that it tests; the first part that is there counts.
TESTED = {
    "varlen": {"column_sums_varlen"},
    "scores": {"column_sums", "stage", "prefill", "tiles"},
    "column_sums": {"column_sums", "stage", "prefill", "tiles"},
    "select": {"select", "stage", "prefill"},
    "gather": {"gather", "stage", "prefill"},
    "acceleration": {"prefill"},
    "stage": {"stage", "prefill"},
}
ALL = set().union(*TESTED.values())


def subjects(file: str) -> set[tuple[str, str]]:
    """Backend and operation of everything that a test file is about: all of its backend's, if its name does not tell."""
    if "native" in file:
        return {("native", operation) for operation in ("column_sums", "select", "stage")}
    name = Path(file).stem
    return {("triton", operation) for operation in next((own for part, own in TESTED.items() if part in name), ALL)}


def cancelled(found: Iterable[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Backend and operation of what may not be timed, and the test that failed and failed again."""
    found = [row for row in found if "test" in row]
    recovered = {row["test"] for row in found if row.get("repeated") and row["status"] == "passed"}
    return {
        what: f"{row['test']} fails"
        for row in found
        if row["status"] == "failed" and row["test"] not in recovered
        for what in subjects(row["file"])
    }


def files(dry: bool) -> list[str]:
    """All tests of kernels that can run on a GPU, as pytest names them; in a dry run without the slowest."""
    paths = [*ROOT.glob("tests/triton_kernels/test_*.py"), *ROOT.glob("tests/ops/native/test_cuda*.py")]
    slow = ("acceleration", "varlen", "edges") if dry else ()
    return sorted(str(path.relative_to(ROOT)) for path in paths if not any(part in path.name for part in slow))


def main(dry: bool) -> int:
    """Run them; the exit code says whether one failed, repeated or not."""
    if importlib.util.find_spec("pytest") is None:
        rows.add({"tests": "all", "status": "absent", "why": "pytest is not installed"})
        return 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_INTERPRET": "1", FIRST: "1"} if dry else {}
    if importlib.util.find_spec("hypothesis") is None:
        stand_in = Path(__file__).resolve().parent / "without_hypothesis"
        environment["PYTHONPATH"] = f"{stand_in}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    workers = min(WORKERS, len(os.sched_getaffinity(0)))
    if importlib.util.find_spec("xdist") is None:
        code = max(_all([[file] for file in files(dry)], environment, workers))
    else:
        code = _pytest([*files(dry), "-n", str(workers), "--dist", "worksteal"], environment)
    failures: dict[str, list[str]] = {}
    for row in rows.read():
        if "test" in row and row["status"] == "failed":
            failures.setdefault(row["file"], []).append(row["test"])
    _all(list(failures.values()), {**environment, REPEAT: "1"}, workers)
    return 0 if code in (0, 5) else 1


def _all(arguments: list[list[str]], environment: dict[str, str], workers: int) -> list[int]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda own: _pytest(own, environment), arguments))


def _pytest(arguments: list[str], environment: dict[str, str]) -> int:
    options = ["-q", "-p", "suite.outcomes", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main("--dry" in sys.argv))

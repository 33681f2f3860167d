"""Everything that needs a GPU, in one go and in the order of its worth, with whatever Python and packages the machine has.

    python benches/gpu_suite.py FOLDER [--seconds 500] [--dry]

1. versions and the device's two ceilings; the CUDA library, compiled once if it is not there yet
2. the kernels' tests on all cores; a failure cancels the timing of what it tests, and nothing else
3. the target shape: 6,272 visual tokens, 64 text rows, 28 query and 4 key heads, head dim 128, bfloat16
4. 100,352 visual tokens; one text row and 256; one segment
5. a whole prefill at 0.273 of the FLOPs
6. a dozen tile sizes
7. ncu, a launch each of score, select and native; compute-sanitizer's memcheck, racecheck, synccheck
8. a batch of eight

Each is a process with a time limit. What does not fit into the time is a row that says so. FOLDER gets three files:
rows.jsonl, where every row is appended as soon as it is known, log.txt with all output, and after every step DEVICE.json:
device, commit, versions, ceilings, what became of each step, and all rows with their time over the floor that the ceilings
give. Kill it whenever you like: the rows so far are there.

With --dry it walks through the same on a CPU, with Triton's interpreter at tiny sizes and without the tools.

A compiled CUDA library may be brought along, which saves a minute. Where nvcc and the sources are the same as on the GPU's
machine, but no GPU is needed:

    python benches/gpu_suite.py CACHE --prebuild        # for sm_90a; ADATP_CUDA_ARCHS says otherwise
    ADATP_CACHE=CACHE python benches/gpu_suite.py FOLDER

The cache's key stands for the sources, the flags and what ``nvcc --version`` prints, so a library that does not fit is not
taken, but compiled anew. A library that lies in the package, as adatp_kernels/adatp_cuda.so, is taken unseen and without nvcc;
whoever puts it there answers for its being made of the same sources. A row says which of the three it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import report  # noqa: E402
from suite import rows  # noqa: E402
from suite.budget import Budget, Step  # noqa: E402

RESERVE = 4.0  # seconds for the last file


def plan(dry: bool) -> list[Step]:
    """All steps after the first, in order. In a dry run they have less time, and few would take it."""

    def step(name: str, module: str, *arguments: str, limit: float, least: float, **environment: str) -> Step:
        command = [sys.executable, "-m", f"suite.{module}", *arguments, *(["--dry"] if dry else [])]
        return Step(name, command, limit, 2.0 if dry else least, environment)

    interpreted = {"TRITON_INTERPRET": "1"} if dry else {}
    profiles = [
        step(f"profile {what}", "tools", "profile", what, limit=40, least=15) for what in ("score", "select", "native")
    ]
    sanitizers = [
        step(name, "tools", "sanitize", name, limit=60, least=20) for name in ("memcheck", "racecheck", "synccheck")
    ]
    return [
        step("library", "build", limit=100, least=5),
        step("tests", "tests", limit=160, least=30),
        step("target", "timed", "target", limit=110, least=15, **interpreted),
        step("shapes", "timed", "shapes", limit=80, least=15, **interpreted),
        step("prefill", "prefill", limit=90, least=25),
        step("tiles", "tiles", limit=60, least=15, **interpreted),
        *profiles,
        *sanitizers,
        step("batch", "timed", "batch", limit=60, least=12, **interpreted),
    ]


def write_results(folder: Path) -> Path:
    """DEVICE.json of the rows so far."""
    found = rows.read(folder / "rows.jsonl")
    head: dict[str, Any] = {"device": "unknown", "versions": None, "ceilings": None}
    for row in found:
        head.update({key: value for key, value in row.items() if "device" in row or "ceilings" in row if key != "step"})
    outcomes = ("done", "failed", "timed out", "not begun")
    steps = [row for row in found if row.get("status") in outcomes and not row.keys() & {"suite", "test", "profile"}]
    timed = [row for row in found if "median" in row]
    report.add_speedups(timed)
    rest = [
        row
        for row in found
        if row not in steps and "median" not in row and "device" not in row and "ceilings" not in row
    ]
    path = folder / f"{head['device']}.json"
    report.write_results(path, head, timed, steps=steps, other=rest)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 if all of them were done and none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the three files go; with --prebuild, the library's cache")
    parser.add_argument("--seconds", type=float, default=500, help="for everything (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="on a CPU: interpreter instead of GPU, tiny sizes")
    parser.add_argument("--prebuild", action="store_true", help="only compile the CUDA library, to be brought along")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), str(ROOT / "benches"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if options.prebuild:
        environment |= {"ADATP_CACHE": str(options.folder.resolve())}
        environment.setdefault("ADATP_CUDA_ARCHS", "sm_90a")
        return subprocess.run([sys.executable, "-m", "suite.build", "--carry"], env=environment).returncode

    results = options.folder / "rows.jsonl"
    results.unlink(missing_ok=True)
    log = options.folder / "log.txt"
    log.unlink(missing_ok=True)
    budget = Budget(options.seconds - RESERVE, results, log, environment)
    module = [sys.executable, "-m", "suite.device", *(["--dry"] if options.dry else [])]
    if budget.run(Step("device", module, limit=60)) != "done":
        print(f"error: no device to measure; {log} says more", file=sys.stderr)
        return 2
    device = next(row for row in rows.read(results) if "device" in row)
    if "capability" in device:  # one architecture is compiled in a third of the time of all
        number = device["capability"]
        budget.environment.setdefault("ADATP_CUDA_ARCHS", f"sm_{number}{'a' if number == '90' else ''}")
    outcomes = []
    for step in plan(options.dry):
        outcomes.append(budget.run(step))
        written = write_results(options.folder)
    timed = json.loads(written.read_text())["rows"]
    short = [row for row in timed if row["ours"] and row["step"] in ("target", "prefill")]
    print("\n".join([*report.table(short), f"written: {results}, {log}, {written}"]))
    return 0 if set(outcomes) == {"done"} and timed else 1


if __name__ == "__main__":
    sys.exit(main())

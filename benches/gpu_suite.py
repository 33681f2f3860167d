"""Everything that needs a GPU, in one go: from the repository's root, with the machine's own Python, no install.

    python benches/gpu_suite.py DIRECTORY [--seconds 520] [--dry]

Prints versions and the two measured ceilings, runs the kernels' tests on the GPU, the CUDA library's also under
compute-sanitizer where that works, then the suites of what passed, and last a short table; JSON and plots go into
DIRECTORY. With --dry it runs on a CPU, the tests by Triton's interpreter and the machine that plays a GPU, so that
every path of this script has been walked before its first minute on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a failing test file keeps from being timed.
TIMED_BY = {
    "triton_kernels/test_scores.py": {"column_sums", "stage", "prefill"},
    "triton_kernels/test_scores_varlen.py": {"column_sums"},
    "triton_kernels/test_select.py": {"select", "stage", "prefill"},
    "triton_kernels/test_gather.py": {"gather", "stage", "prefill"},
    "triton_kernels/test_stage.py": {"stage", "prefill"},
    "triton_kernels/test_acceleration.py": {"prefill"},
    "ops/native/test_cuda.py": set(),  # every variant is verified again before it is timed
}
# Few and small: a kernel is up to a hundred times slower under it.
SANITIZED = "test_masks or test_prune_is_its_operations and strict or several_blocks and few or scattered"
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SUITES = ("stage", "column_sums", "select", "gather", "prefill")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where JSON, plots and logs go")
    parser.add_argument(
        "--seconds", type=float, default=520, help="start nothing new after this long (default: %(default)s)"
    )
    parser.add_argument("--dry", action="store_true", help="on a CPU: interpreter instead of GPU, reduced sizes")
    options = parser.parse_args()
    started = time.monotonic()
    left = lambda: options.seconds - (time.monotonic() - started)  # noqa: E731
    options.directory.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    import torch
    import triton

    if not options.dry and not torch.cuda.is_available():
        print("error: no CUDA device here; --dry walks through the script on a CPU", file=sys.stderr)
        return 2
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}")
    sys.path.insert(0, str(ROOT / "benches"))
    from measure import ceilings, device_name

    print(f"{device_name()}: " + ", ".join(f"{value:.3g} {name}" for name, value in ceilings().items()), flush=True)

    if not options.dry:  # the one architecture is compiled in a third of the time
        number = "".join(map(str, torch.cuda.get_device_capability()))
        environment.setdefault("ADATP_CUDA_ARCHS", f"sm_{number}{'a' if number == '90' else ''}")
    broken: set[str] = set()
    failed = False
    for file, suites in TIMED_BY.items():
        interpreted = options.dry and file.startswith("triton")
        code = _run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
            ROOT / "tests",
            {**environment, **({"TRITON_INTERPRET": "1"} if interpreted else {})},
            options.directory / f"{file.removesuffix('.py').replace('/', '.')}.log",
            max(1.0, left()),
        )
        if code:
            broken |= suites
            failed = True
    if not options.dry:
        failed |= _sanitize(options.directory, environment, left)
    rows: list[dict] = []
    for suite in SUITES:
        if suite in broken:
            print(f"{suite}: not timed, because what it is made of failed its tests", flush=True)
        elif left() < 20:
            print(f"{suite}: not timed, because the time is up", flush=True)
        else:
            folder = options.directory / suite
            _run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    f"benches/test_{suite}.py",
                    "--results",
                    str(folder),
                ],
                ROOT,
                environment,
                options.directory / f"{suite}.log",
                min(left(), 200),  # none may use up what the others need
            )
            written = folder / f"{device_name()}.json"
            if written.exists():
                rows += json.loads(written.read_text())["rows"]
    _finish(options.directory, rows)
    return int(failed or not rows)


def _sanitize(directory: Path, environment: dict[str, str], left: Callable[[], float]) -> bool:
    """The CUDA library's tests under each tool of compute-sanitizer; whether one found something."""
    tool = shutil.which("compute-sanitizer")
    works = [tool, sys.executable, "-c", "import torch; torch.ones(1, device='cuda').add_(1).item()"]
    if tool is None or subprocess.run(works, capture_output=True).returncode:
        print(f"compute-sanitizer: {'does not work' if tool else 'is not'} here", flush=True)
        return False
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "ops/native/test_cuda.py",
        "-k",
        SANITIZED,
    ]
    found = False
    for name in SANITIZERS:
        if left() < 60:
            print(f"{name}: not run, because the time is up", flush=True)
            continue
        log = directory / f"{name}.log"
        code = _run([tool, "--tool", name, "--error-exitcode", "9", *tests], ROOT / "tests", environment, log, 60)
        found |= code not in (0, 124)
    return found


def _run(command: list[str], folder: Path, environment: dict[str, str], log: Path, seconds: float) -> int:
    """Run a command with its output in a file; prints its last line and what failed, and returns its exit code."""
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    lines = log.read_text().strip().splitlines() or ["no output"]
    for line in [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))][:20]:
        print(f"  {line[:200]}")
    print(f"{log.stem}: exit {code}: {lines[-1]}", flush=True)
    return code


def _finish(directory: Path, rows: list[dict]) -> None:
    """One JSON of all suites, and the short table: what a reader looks for first."""
    from measure import device_name
    from report import table

    for extra in directory.glob(f"*/{device_name()}.json"):
        merged = json.loads(extra.read_text())
        merged["rows"] = rows
        (directory / f"{device_name()}.json").write_text(json.dumps(merged, indent=1))
    short = [row for row in rows if row["ours"] and row.get("batch", 1) == 1 and row.get("T", 64) == 64]
    print("\n".join(table(short)))


if __name__ == "__main__":
    sys.exit(main())

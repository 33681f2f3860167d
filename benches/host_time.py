"""What a prompt costs beside its kernels: the time that Python takes on the CPU, of this checkout and of another commit.

    python benches/host_time.py                     # this checkout
    python benches/host_time.py --against b147454   # beside another commit, and the ratio

Processes of the two take turns, A B A B, and the table is printed anew as each round ends: of every line the median over the
processes so far, each of which reports a median of its own. Times are the process's CPU time on one thread, so that what else
the machine does counts little; they hold for this machine alone, the ratios for others, too. No GPU is needed: where an
operation would launch its kernels, a launch that does nothing takes their place.

What the lines are:

- A prompt of a decoder of 28 layers and tiny widths, so that next to nothing is computed: as the model alone reads it, under
  `accelerate`, and the difference. "New" prompts have frames, shots and a length that were not seen before; "again" is one
  prompt time and again.
- `begin` of 32 frames of 196 tokens, likewise.
- A stage at LLaVA-OneVision-7B's layer, up to where the driver would launch: on Triton all of its own `JITFunction.run` in
  Python is included, its C launcher is not; on the native backend the operator's own C++ is not.
- A decoded token after a pruned prompt: what the hooks add to one layer of the tiny model.
- A layer's attention with its LSE, around a flash attention that does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from host_figures import figures

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Compare, or be one of the processes that are compared."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--against", metavar="COMMIT", help="another commit of this repository to measure in turn")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each")
    parser.add_argument("--quick", action="store_true", help="every line once or twice: to see that it runs")
    parser.add_argument("--worker", action="store_true", help="print one process's figures as JSON, in microseconds")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(figures(options.quick)))
        return
    with contextlib.ExitStack() as stack:
        trees = {"this checkout": ROOT}
        if options.against:
            trees[options.against] = stack.enter_context(tree_of(options.against))
        taken: dict[str, list[dict[str, float | str]]] = {name: [] for name in trees}
        for number in range(options.rounds):
            for name, tree in trees.items():
                taken[name].append(measured(tree, options.quick))
            print(f"\nafter round {number + 1} of {options.rounds}\n\n{table(taken)}", flush=True)


@contextlib.contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The files of `commit` in a folder of their own."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory(prefix="host-time-") as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def measured(tree: Path, quick: bool) -> dict[str, float | str]:
    """What a fresh process with the package of `tree` prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, "--worker", *(["--quick"] if quick else [])]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=tree).stdout
    return json.loads(printed.splitlines()[-1])


def table(taken: dict[str, list[dict[str, float | str]]]) -> str:
    """Medians and, of two trees, their ratio, in markdown; what a tree cannot be measured in is said below."""
    names = list(taken)
    rows = [["µs", *names, *(["ratio"] if len(names) > 1 else [])]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    processes = [process for name in names for process in taken[name]]
    for line in dict.fromkeys(line for process in processes for line in process):
        medians = []
        for name in names:
            values = [process.get(line) for process in taken[name]]
            medians.append(statistics.median(values) if all(isinstance(value, float) for value in values) else None)
        if medians == [None] * len(names):
            continue
        row = [line, *("–" if median is None else f"{median:,.1f}" for median in medians)]
        if len(names) > 1:
            row.append("–" if None in medians or min(medians) <= 0 else f"{medians[0] / medians[1]:.2f}")
        rows.append(row)
    notes = {f"{name}: {why}": None for name in names for process in taken[name] for why in process.values()
             if isinstance(why, str)}  # fmt: skip
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *notes])


if __name__ == "__main__":
    main()

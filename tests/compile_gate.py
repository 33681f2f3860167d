"""Compiles the real launches for GPUs that are not here, and fails on what would make them slow or impossible.

    python tests/compile_gate.py [--write] [sm_80 sm_90 sm_100 gfx942]

A kernel fails the gate if it spills registers, needs more shared memory than the GPU has, lacks the matrix instruction
(scores in half precision) or a barrier, touches memory before the kernel that it follows is done, exceeds one of
`gates/limits.py`, or if a number of it (instructions of all and of the loop with the products, integer divisions there,
barriers, registers, shared memory) is more than 5 % above the committed one of this Triton. The table has a line per
kernel and case of `gates/cases.py`, with "was→now" where a number differs. Below are the launches of a stage, which may
not read a tensor's values, and how often the stages of a
prompt make Triton compile a kernel. `--write` commits the numbers to `gates/triton-VERSION.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import triton
from gates import committed, measure
from gates.cases import CASES, PROMPTS
from gates.compile_only import GPUS, compiled, compiling_for
from gates.limits import LIMITS
from gates.ordering import unordered
from gates.report import COLUMNS, Report, Row

PROCESSES = 2
# Where the kernels of a stage are launched while the ones before them run.
OVERLAPPING = ("sm_90", "sm_100")


def compile_case(task: tuple[str, str]) -> list[Row]:
    """The kernels of one GPU's case, in one of the processes."""
    gpu, case = task
    with compiling_for(gpu):
        CASES[case]()
        return [_measured(gpu, case, kernel) for kernel in compiled()]


def _measured(gpu: str, case: str, kernel: Any) -> Row:
    numbers = asdict(measure.numbers(kernel, GPUS[gpu]))
    follows = getattr(kernel.metadata, "launch_pdl", False)
    wrong = [*_wrong(gpu, case, kernel.name, numbers, follows), *unordered(kernel, case)]
    return Row(kernel.name, kernel.hash, numbers, wrong)


def _wrong(gpu: str, case: str, kernel: str, numbers: dict[str, Any], follows: bool) -> Iterator[str]:
    if numbers["spilled"]:
        yield f"spills {numbers['spilled']}"
    if numbers["shared"] > GPUS[gpu].shared_memory:
        yield f"needs {numbers['shared']} of {GPUS[gpu].shared_memory} bytes shared"
    if "_column_sums" in kernel and "float32" not in case and not numbers["products"]:
        yield f"has no {GPUS[gpu].matrix}"
    if case.startswith("stage") and gpu in OVERLAPPING and follows != (kernel != "_column_sums_kernel"):
        yield "follows another kernel without overlapping it" if not follows else "is the first, and waits"
    for number, most in LIMITS.get((gpu, case, kernel), {}).items():
        if numbers[number] is None or numbers[number] > most:
            yield f"{number} {numbers[number]}, at most {most} allowed"


def main(arguments: list[str]) -> int:
    """Print the tables, then what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpus", nargs="*", metavar="GPU", help=f"of {', '.join(GPUS)}; all, if none is named")
    parser.add_argument("--write", action="store_true", help="commit the numbers of these GPUs and this Triton")
    options = parser.parse_args(arguments)
    if unknown := set(options.gpus) - GPUS.keys():
        parser.error(f"no such GPU: {', '.join(sorted(unknown))}")
    names, old = options.gpus or list(GPUS), committed.load(triton.__version__)
    reports = {name: Report(name, old.get(name, {})) for name in names}
    print(f"{'GPU':<7} {'case':<38} {'kernel':<27}{''.join(f'{title:>13}' for title in COLUMNS)}", flush=True)
    tasks = [(name, case) for name in names for case in CASES]
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        for (name, case), rows in zip(tasks, pool.imap(compile_case, tasks), strict=True):
            reports[name].add_case(case, rows)
    print(f"\n{'GPU':<7} {'prompt':<38} {'kernel':<27}{'launches':>13}{'variants':>13}")
    for report in reports.values():
        for prompt in PROMPTS:
            report.add_prompt(prompt)
        report.finish()
    return _conclude(list(reports.values()), write=options.write)


def _conclude(reports: list[Report], *, write: bool) -> int:
    version, failures = triton.__version__, [failure for report in reports for failure in report.failures]
    print()
    if write:
        print(f"written: {committed.write(version, {report.gpu: report.now for report in reports})}")
        failures = [failure for report in reports for failure in report.forbidden]
    elif missing := [report.gpu for report in reports if not report.was]:
        print(
            f"triton {version}: no numbers are committed for {', '.join(missing)}; only what is never allowed was checked"
        )
    if not failures and not write and any(report.improved for report in reports):
        print("better than committed, or other kernels: rewrite the numbers with --write")
    for failure in failures:
        print(f"error: triton {version}, {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

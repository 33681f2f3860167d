"""Compiles and links the CUDA library for GPUs that are not here, and fails on what would make it slow.

    python tests/cuda_gate.py [FOLDER]

Needs nvcc. A kernel fails the gate if it spills registers, uses so many that two blocks do not fit a multiprocessor, or, if it
multiplies, lacks the matrix instruction or the asynchronous copy. The library is left in FOLDER, if one is given.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton.backends.nvidia

from adatp_kernels.ops.native.recipe import CUDA, BuildError, compile_library

# Triton brings it along.
CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
REGISTERS = 65536 // (2 * 256)  # of two blocks of 256 threads
EXPECTED = {"sm_80", "sm_90a", "sm_100"}
TYPES = {"1": "bfloat16", "2": "float16"}


def report(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """Registers and spilled bytes by architecture and kernel, from what ptxas says."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    kernel = None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel = found.setdefault((match[2], match[1]), {})
        elif kernel is not None and (match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            kernel["spilled"] = int(match[1]) + int(match[2])
        elif kernel is not None and (match := re.search(r"Used (\d+) registers", line)):
            kernel["registers"] = int(match[1])
    return found


def instructions(library: Path) -> dict[tuple[str, str], dict[str, int]]:
    """How many of each interesting instruction the machine code has."""
    code = subprocess.run([CUOBJDUMP, "-sass", library], check=True, capture_output=True, text=True).stdout
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture, kernel = "", {}
    for line in code.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            kernel = found.setdefault((architecture, match[1]), dict.fromkeys(("HMMA", "LDGSTS", "LDSM", "STL"), 0))
        else:
            for name in kernel:
                kernel[name] += f" {name}" in line
    return found


def main() -> int:
    """Print the table and what is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(sys.argv[1] if len(sys.argv) > 1 else scratch) / CUDA.library
        try:
            log = compile_library(CUDA, library, "-Xptxas=-v", "--threads=0")
        except BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        kernels, codes = report(log), instructions(library)
    problems = [f"no kernels for {name}" for name in EXPECTED - {architecture for architecture, _ in kernels}]
    print(f"{'kernel':<34} {'registers':>9} {'spilled':>8} {'HMMA':>5} {'LDGSTS':>7} {'LDSM':>5}")
    for (architecture, symbol), kernel in sorted(kernels.items()):
        number, steps = re.search(r"DTypeE(\d)ELi(\d)", symbol).groups()
        scores = steps != "0"
        name = f"{architecture} {TYPES[number]}, D {16 * int(steps)}" if scores else f"{architecture} scores given"
        code = codes[architecture, symbol]
        row = f"{name:<34} {kernel['registers']:>9} {kernel['spilled']:>8} {code['HMMA']:>5} {code['LDGSTS']:>7} {code['LDSM']:>5}"
        print(row, flush=True)
        if kernel["spilled"] or code["STL"]:
            problems.append(f"{name} spills {kernel['spilled']} bytes of registers")
        if kernel["registers"] > REGISTERS:
            problems.append(f"{name} uses {kernel['registers']} registers, more than {REGISTERS}")
        if scores and not (code["HMMA"] and code["LDGSTS"] and code["LDSM"]):
            problems.append(f"{name} lacks a matrix or a copying instruction")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

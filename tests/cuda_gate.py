"""Compiles and links the CUDA library for GPUs that are not here, and fails on what would make it slow.

    python tests/cuda_gate.py [--write] [FOLDER]

Needs nvcc. A kernel fails the gate if it spills registers, uses so many that two blocks do not fit a multiprocessor, or, if it
multiplies, lacks the matrix instruction or the asynchronous copy. It also fails if it has more barriers, fences or divisions
than tests/gates/cuda.json says it had, or 5 % more instructions; where that is from another nvcc, this is only printed. With
--write the file gets the numbers as they are now. The library is left in FOLDER, if one is given.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton.backends.nvidia

from adatp_kernels.ops.native.recipe import CUDA, BuildError, compile_library

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"  # Triton brings them along
COMMITTED = Path(__file__).parent / "gates" / "cuda.json"
REGISTERS = 65536 // (2 * 256)  # of two blocks of 256 threads
TOLERANCE = 1.05  # for instructions; of what is counted by the piece there may not be one more
EXPECTED = {"sm_80", "sm_90a", "sm_100"}
TYPES = {"1": "bfloat16", "2": "float16"}
COUNTED = ("HMMA", "LDGSTS", "LDSM", "STL")
# Of the whole kernel: instructions, barriers of a block, fences (one or two to a barrier of the grid or of a team), integer
# divisions. Of the two phases with matrix products: instructions per matrix instruction in the innermost loop, and those
# around it in the loop over the tiles, none if the compiler has unrolled the inner one.
MEASURED = ("instructions", "barriers", "fences", "divisions", "product 1", "product 2", "tile 1", "tile 2")
BY_THE_PIECE = ("barriers", "fences", "divisions")


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


def disassembly(library: Path) -> dict[tuple[str, str], str]:
    """Every kernel's machine code as text, by architecture and kernel."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [TOOLS / "cuobjdump", "-xelf", "all", library.resolve()], cwd=folder, check=True, capture_output=True
        )
        for cubin in sorted(Path(folder).glob("*.cubin")):
            text = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], check=True, capture_output=True, text=True).stdout
            for section in text.split("\t.section\t")[1:]:
                if match := re.match(r"\.text\.(\w+)", section):
                    found[cubin.suffixes[-2][1:], match[1]] = section
    return found


def instructions(text: str) -> list[str]:
    """The instructions in a kernel's disassembly, in order, and labels, which end in a colon; no padding."""
    lines = re.findall(r"^(\.\w+:)|/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", text, re.MULTILINE)
    return [label or instruction for label, instruction in lines if instruction != "NOP"]


def count(code: list[str], name: str) -> int:
    """How many instructions there are whose name begins with `name`, a pattern, whatever they depend on."""
    pattern = re.compile(rf"(?:@\S+ )?{name}")
    return sum(bool(pattern.match(line)) for line in code if not line.endswith(":"))


def loops(code: list[str]) -> list[list[str]]:
    """The code between the target of every backward branch and the branch, the shortest first."""
    places = {line[:-1]: place for place, line in enumerate(code) if line.endswith(":")}
    ends: dict[int, int] = {}  # a loop that is gone on with in several places ends with the last
    for place, line in enumerate(code):
        target = re.search(r"\bBRA\b.*`\((\S+)\)", line)
        if target and places.get(target[1], place) < place:
            ends[places[target[1]]] = place + 1
    return sorted((code[begin:end] for begin, end in ends.items()), key=len)


def products(code: list[str]) -> list[tuple[list[str], list[str]]]:
    """Each innermost loop with matrix instructions, in the code's order, and the innermost that also copies: over the tiles.

    A branch back from code that stands aside, for lanes that have parted, looks like a larger loop; the shortest counts.
    """
    multiplying = [loop for loop in loops(code) if count(loop, "HMMA")]
    copying = [loop for loop in multiplying if count(loop, "LDGSTS")]
    inner = [loop for loop in multiplying if not any(other[0] in loop[1:] for other in multiplying)]
    pairs = [(loop, next((tile for tile in copying if loop[0] in tile), loop)) for loop in inner]
    return sorted(pairs, key=lambda pair: code.index(pair[0][0]))


def measure(code: list[str]) -> dict[str, float]:
    """The numbers of a kernel that are in MEASURED."""
    numbers: dict[str, float] = {
        "instructions": count(code, ""),
        "barriers": count(code, "BAR"),
        "fences": count(code, "MEMBAR"),
        # nvcc begins a division with the divisor's reciprocal, rounded up; one of 64 bits may be a function.
        "divisions": count(code, r"I2F\S*\.RP") + count(code, r"CALL.*__cuda_sm\d+_(?:div|rem)_[su]64"),
    }
    for phase, (product, tile) in enumerate(products(code), 1):
        numbers[f"product {phase}"] = round(count(product, "") / count(product, "HMMA"), 2)
        numbers[f"tile {phase}"] = count(tile, "") - count(product, "")
    return numbers


def worse(name: str, now: dict[str, float], was: dict[str, float] | None) -> list[str]:
    """What is wrong with a kernel's numbers, given those committed."""
    if was is None:
        return [f"{name} is not in {COMMITTED.name}: see --write"]
    if now.keys() != was.keys():
        return [f"{name} has other loops than it had: see --write"]
    most = {number: was[number] if number in BY_THE_PIECE else TOLERANCE * was[number] for number in was}
    return [f"{name}: {number} {now[number]}, was {was[number]}" for number in now if now[number] > most[number]]


def row(name: str, code: list[str], kernel: dict[str, int], now: dict[str, float], was: dict[str, float]) -> str:
    """A line of the table; what was committed stands behind each number."""
    cells = [f"{name:<22} {kernel['registers']:>5} {kernel['spilled']:>6}"]
    cells += [f"{count(code, instruction):>6}" for instruction in COUNTED[:3]]
    cells += [f"{now.get(number, '–'):>6} ({was.get(number, '–')})".ljust(13) for number in MEASURED]
    return " ".join(cells).rstrip()


def write(path: Path, nvcc: str, kernels: dict[str, dict[str, float]]) -> None:
    """The committed numbers, a line for each kernel."""
    lines = [f"    {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in sorted(kernels.items())]
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'{{\n  "nvcc": {json.dumps(nvcc)},\n  "kernels": {{\n' + ",\n".join(lines) + "\n  }\n}\n", encoding="utf-8"
    )


def nvcc_version() -> str:
    """Such as 13.0.88."""
    text = subprocess.run([CUDA.compiler(), "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"\bV(\d+(?:\.\d+)+)", text)[1]


def main(arguments: list[str] | None = None) -> int:
    """Print the table and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where to leave the library")
    parser.add_argument("--write", action="store_true", help="commit the numbers as they are now")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        library = (options.folder or Path(scratch)) / CUDA.library
        try:
            log, nvcc = compile_library(CUDA, library, "-Xptxas=-v", "--threads=0"), nvcc_version()
        except BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        kernels, codes = report(log), disassembly(library)
    committed = (
        json.loads(COMMITTED.read_text(encoding="utf-8")) if COMMITTED.exists() else {"nvcc": nvcc, "kernels": {}}
    )
    problems = [f"no kernels for {name}" for name in EXPECTED - {architecture for architecture, _ in kernels}]
    numbers, changes = {}, []
    print(f"{'kernel':<22} {'regs':>5} {'spills':>6} {'HMMA':>6} {'LDGSTS':>6} {'LDSM':>6}", end=" ")
    print(" ".join(f"{number:<13}" for number in MEASURED).rstrip(), f" (nvcc {nvcc}; was: {committed['nvcc']})")
    for (architecture, symbol), kernel in sorted(kernels.items()):
        number, steps = re.search(r"DTypeE(\d)ELi(\d)", symbol).groups()
        scores = steps != "0"
        name = f"{architecture} {TYPES[number]}, D {16 * int(steps)}" if scores else f"{architecture} scores given"
        code = instructions(codes[architecture, symbol])
        numbers[name] = measure(code)
        was = committed["kernels"].get(name)
        print(row(name, code, kernel, numbers[name], was or {}), flush=True)
        changes += worse(name, numbers[name], was)
        if kernel["spilled"] or count(code, "STL"):
            problems.append(f"{name} spills {kernel['spilled']} bytes of registers")
        if kernel["registers"] > REGISTERS:
            problems.append(f"{name} uses {kernel['registers']} registers, more than {REGISTERS}")
        if scores and not all(count(code, instruction) for instruction in COUNTED[:3]):
            problems.append(f"{name} lacks a matrix or a copying instruction")
        if scores and len(products(code)) != 2:
            problems.append(f"{name} has {len(products(code))} loops with matrix products, not one for each phase")
    if options.write:
        write(COMMITTED, nvcc, numbers)
    elif nvcc == committed["nvcc"]:
        problems += changes
    elif changes:
        print(f"not compared as nvcc is {nvcc}, not {committed['nvcc']}:", *changes, sep="\n  ")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

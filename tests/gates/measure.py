"""What a compiled kernel costs, read from what the compiler made: the numbers that the gate compares and limits.

Nothing here is a time. But a loop that is half as long, or a division less in it, has not been known to be slower.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton.backends.nvidia
from gates import listing
from gates.compile_only import Gpu

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"

# Any matrix product, the target's own for half precision or a smaller one.
MATRIX = re.compile(r"\b(?:[A-Z]+MMA\b|v_mfma)")
# The same, as the intermediate representation spells it.
PRODUCT = re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma\.|@llvm\.amdgcn\.mfma")
# By what is not a constant: the code generators make a multiplication of the others. Some are vectors.
DIVISION = re.compile(r"= [su](?:div|rem)(?: exact)? (?:<(\d+) x )?.*, %")
SPILL = re.compile(r"\b(?:STL|LDL)\b")


@dataclass(frozen=True)
class Numbers:
    """A kernel's instructions (padding apart), those of the innermost loop around its matrix products, and so on.

    `divisions` are the loop's integer divisions and remainders, counted before the code generator expands each into a
    dozen instructions: in machine code divisions by one number share what looks like a division, its reciprocal.
    `loop` and `divisions` are None where no loop multiplies matrices.
    """

    instructions: int
    loop: int | None
    divisions: int | None
    barriers: int
    registers: int
    spilled: int
    shared: int
    products: int


def numbers(kernel: Any, gpu: Gpu) -> Numbers:
    """The numbers of one variant of a kernel."""
    is_amd = gpu.target.backend == "hip"
    text = kernel.asm["amdgcn"] if is_amd else _disassembled(kernel)
    code = listing.read(text, "amdgcn" if is_amd else "sass")
    instructions = code.instructions()
    loop = code.loop_with(MATRIX)
    divided = map(DIVISION.search, listing.read(kernel.asm["llir"], "llir").loop_with(PRODUCT))
    registers, spilled = _registers(kernel, is_amd, instructions)
    return Numbers(
        instructions=len(instructions),
        loop=len(loop) or None,
        divisions=sum(int(found[1] or 1) for found in divided if found) if loop else None,
        barriers=_count(re.compile(r"\bs_barrier\b" if is_amd else r"\bBAR\.(?:SYNC|RED)"), instructions),
        registers=registers,
        spilled=spilled,
        shared=kernel.metadata.shared,
        products=_count(re.compile(rf"\b{gpu.matrix}"), instructions),
    )


def _count(pattern: re.Pattern[str], instructions: list[str]) -> int:
    return sum(map(bool, map(pattern.search, instructions)))


def _registers(kernel: Any, is_amd: bool, instructions: list[str]) -> tuple[int, int]:
    """Registers a thread, and the bytes (NVIDIA: and the instructions) that spilling takes."""
    if is_amd:
        # Scalar registers spill into lanes of vector registers, which costs next to nothing, not into memory.
        return tuple(
            int(re.search(rf"\.{key}:\s+(\d+)", kernel.asm["amdgcn"])[1]) for key in ("vgpr_count", "vgpr_spill_count")
        )
    resources = _run("cuobjdump", "-res-usage", kernel)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", resources).groups())
    return registers, stack + local + _count(SPILL, instructions)


def _disassembled(kernel: Any) -> str:
    return _run("nvdisasm", "-c", kernel)


def _run(tool: str, option: str, kernel: Any) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True, check=True).stdout

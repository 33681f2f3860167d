"""Compiles the real launches for GPUs that are not here, and fails on what would make them slow or impossible.

    python tests/compile_gate.py [sm_80 sm_90 sm_100 gfx942]

A driver that compiles what Triton's own would, and then launches nothing, takes the place of the GPU's; the
package's launchers run on CPU tensors as they are. A kernel fails the gate if it spills registers, needs more
shared memory than the GPU has, lacks the matrix instruction (scores in half precision) or a barrier. The table that is
printed has one line per kernel and case, and the launches of a whole stage, which may not read a tensor's values,
and how often the stages of one prompt make Triton compile a kernel: once.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from adatp_kernels.ops.arguments import Scoring, Selection
from adatp_kernels.ops.triton import (
    column_sums,
    column_sums_varlen,
    gather,
    row_lse,
    select,
    select_held,
    select_scattered,
    select_split,
    stage,
    tiles,
)

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
KERNELS = [row_lse._row_lse_kernel, column_sums._column_sums_kernel, column_sums._mean_kernel]
KERNELS += [column_sums_varlen._row_lse_varlen_kernel, column_sums_varlen._column_sums_varlen_kernel]
KERNELS += [column_sums_varlen._mean_varlen_kernel, gather._gather_kernel]
KERNELS += [select_held._select_held_kernel, select_scattered._select_scattered_kernel]
KERNELS += [getattr(select_split, f"_{name}_kernel") for name in ("enter", "rank", "narrow", "count", "write")]


@dataclass(frozen=True)
class Gpu:
    """A target, its shared memory in bytes, and the matrix instruction that half precision must use."""

    target: GPUTarget
    shared_memory: int
    matrix: str


GPUS = {
    "sm_80": Gpu(GPUTarget("cuda", 80, 32), 166912, "HMMA"),
    "sm_90": Gpu(GPUTarget("cuda", 90, 32), 232448, "HGMMA"),
    "sm_100": Gpu(GPUTarget("cuda", 100, 32), 232448, "UTCHMMA"),
    "gfx942": Gpu(GPUTarget("hip", "gfx942", 64), 65536, "v_mfma"),
}


class CompileOnlyDriver:
    """What Triton asks of a driver, answered for a GPU that is not here; launches are only counted."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.launches = gpu, []
        self.utils = SimpleNamespace(
            # No limit here: the gate itself compares, and says which kernel is too large.
            get_device_properties=lambda device: {
                "max_shared_mem": 1 << 30,
                "multiprocessor_count": 132,
                "warpSize": 32,
            },
            load_binary=lambda name, kernel, shared, device: (object(), object(), 0, 0, 1024),
        )

    def get_current_target(self):
        return self.gpu.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def launcher_cls(self, source, metadata):
        return lambda *arguments, **_: self.launches.append(metadata.name)


@contextmanager
def compiling_for(gpu: Gpu) -> Iterator[CompileOnlyDriver]:
    """Within, kernels are compiled for `gpu` and not run."""
    before, fake = driver._active, CompileOnlyDriver(gpu)
    driver.set_active(fake)
    for kernel in KERNELS:
        kernel.device_caches.clear()
    try:
        yield fake
    finally:
        driver._active = before


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Every launcher, over the head dims and dtypes that it has a tile for."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for dim in (8, 64, 80, 96, 128, 256):
            yield f"score {str(dtype)[6:]} D={dim}", lambda dtype=dtype, dim=dim: score(dtype, dim)
    yield "score bfloat16 D=128, one row", lambda: score(torch.bfloat16, 128, rows=1)
    yield "score bfloat16 D=128, masks", lambda: score(torch.bfloat16, 128, masks=True)
    for dtype, dim in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float32, 128)):
        yield f"packed {str(dtype)[6:]} D={dim}", lambda dtype=dtype, dim=dim: packed(dtype, dim)
    for dedup, positions in (("strict", 196), ("strict", 3000), ("soft", 196), ("off", 196)):
        yield f"select {dedup}, {positions} positions", lambda d=dedup, p=positions: choose(d, p)
    yield "select off, one segment", lambda: choose("off", 196, segments=1)
    yield "select strict, partial sums", lambda: whole_stage(lse=True)
    yield "gather of everything", move


def attention(dtype: torch.dtype, dim: int, rows: int = 64, keys: int = 1500) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(1, 28, rows, dim, dtype=dtype), torch.empty(1, 4, keys, dim, dtype=dtype)


def score(dtype: torch.dtype, dim: int, rows: int = 64, masks: bool = False) -> None:
    query, key = attention(dtype, dim, rows)
    key_mask, query_mask = torch.ones(1, 1500, dtype=torch.bool), torch.ones(1, rows, dtype=torch.bool)
    for lse in (None, torch.empty(1, 28, rows), torch.empty(1, 28, rows, dtype=torch.float64)):
        column_sums.column_sums(
            query, key, query_start=1400, key_range=(14, 1400), scale=0.1, lse=lse,
            key_mask=key_mask if masks else None, query_mask=query_mask if masks else None,
        )  # fmt: skip


def packed(dtype: torch.dtype, dim: int, total: int = 3000, double: bool = True) -> None:
    query, key = torch.empty(total, 28, dim, dtype=dtype), torch.empty(total, 4, dim, dtype=dtype)
    lengths = {name: torch.zeros(10, dtype=torch.int32)[total % 2 :][:9] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    ranges = torch.zeros(8, 2, dtype=torch.int32)
    for lse in (None, torch.empty(28, total), *[torch.empty(28, total, dtype=torch.float64)] * double):
        column_sums_varlen.column_sums_varlen(
            query, key, **lengths, query_range=ranges, key_range=ranges, scale=0.1, lse=lse, query_mask=None
        )


def choose(dedup: str, positions: int, first: int = 0, segments: int = 32) -> None:
    ids = torch.zeros(1, 6272, dtype=torch.int64)
    options = {"dedup": dedup, "soft_weight": 0.5, "num_selected": 640, "num_positions": positions}
    for prior in (None, torch.empty(1, 6272)):
        budgets = torch.ones(1, segments, dtype=torch.int64)
        select.select(
            torch.empty(1, 6280)[:, first : first + 6272], Selection(ids, ids, budgets, prior=prior, **options)
        )


def travelling(length: int = 1500) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    tensors = [
        torch.empty(1, length, 3584, dtype=torch.bfloat16),
        torch.empty(1, length, 128, dtype=torch.bfloat16),
        torch.empty(1, length, 128, dtype=torch.bfloat16),
        torch.empty(3, 1, length, dtype=torch.int64),
        torch.empty(1, 1, length, length, dtype=torch.bool),
        torch.empty(1, 4, length, 128, dtype=torch.bfloat16),
        torch.empty(1, 4, length, 128, dtype=torch.bfloat16),
    ]
    return tensors, [(0, 1), (0, 1), (0, 1), (1, 2), (0, 3), (0, 2), (0, 2)]


def move() -> None:
    tensors, dims = travelling()
    gather.gather(torch.zeros(1, 400, dtype=torch.int64), tensors, dims)
    gather.gather(torch.zeros(8, 400, dtype=torch.int64), [torch.empty(8, 1500, 3584, dtype=torch.bfloat16)], [(0, 1)])


def whole_stage(*, lse: bool, columns: int = 1386, kept: int = 300, batch: int = 1) -> None:
    length = 14 + columns + 98
    query, key = (
        tensor.expand(batch, -1, -1, -1) for tensor in attention(torch.bfloat16, 128, rows=length, keys=length)
    )
    query, lses = query[:, :, -64:], torch.empty(batch, 28, length)[:, :, -64:]
    tensors, dims = travelling(length)
    if batch > 1:  # as the pruner moves what it knows of the tokens
        tensors, dims = [torch.empty(batch, length, 3584, dtype=torch.bfloat16), *tensors[1:3]], [(0, 1)] * 3
        tensors, dims = tensors + [torch.empty(batch, length, dtype=torch.int64)] * 3, dims + [(0, 1)] * 3
    ids = torch.zeros(batch, length, dtype=torch.int64)[:, 14 : 14 + columns]
    scoring = Scoring(query, key, length - 64, (14, 14 + columns), 0.1, lses if lse else None, None, None)
    budgets = torch.ones(batch, 32, dtype=torch.int64)
    selection = Selection(ids, ids, budgets, "strict", 0.0, None, kept, 196)
    stage.prune(scoring, selection, None, tensors, dims, 0, lambda phase: None)


def variants_of_a_prompt(*, lse: bool, batch: int) -> dict[str, int]:
    """How often each kernel is compiled over the stages of a prompt, whose numbers are odd, round, and 1."""
    numbers = (1000, 800, 777, 512, 333, 160, 48, 17, 16, 1)
    for columns, kept in itertools.pairwise(numbers):
        whole_stage(lse=lse, columns=columns, kept=kept, batch=batch)
    return variants()


def variants() -> dict[str, int]:
    """How many variants have been compiled of each kernel of which there are any."""
    numbers = {jit.__name__: sum(len(cache[0]) for cache in jit.device_caches.values()) for jit in KERNELS}
    return {name: number for name, number in numbers.items() if number}


@contextmanager
def nothing_is_read_back() -> Iterator[None]:
    """Within, whatever would wait for a GPU to give a tensor's values to the host raises."""

    def refuse(*_, **__):
        raise AssertionError("a stage waits for the device")

    names = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
    before = {name: getattr(torch.Tensor, name) for name in names}
    for name in names:
        setattr(torch.Tensor, name, refuse)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(torch.Tensor, name, method)


def usage(kernel, gpu: Gpu) -> tuple[int, int, int]:
    """Registers, bytes spilled, and matrix instructions of a compiled kernel."""
    if gpu.target.backend == "hip":
        text = kernel.asm["amdgcn"]
        read = lambda key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1])  # noqa: E731
        # Scalar registers spill into lanes of vector registers, which costs next to nothing, not into memory.
        return read("vgpr_count"), read("vgpr_spill_count"), text.count(gpu.matrix)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        run = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: E731
        resources = run(TOOLS / "cuobjdump", "-res-usage", file.name)
        code = run(TOOLS / "nvdisasm", "-c", file.name)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", resources).groups())
    return (
        registers,
        stack + local + len(re.findall(r"\b(?:STL|LDL)\b", code)),
        len(re.findall(rf"\b{gpu.matrix}\b", code)),
    )


def unordered(kernel, case: str) -> Iterator[str]:
    """What is missing between programs, or wrong with float32; the interpreter, which runs one at a time, cannot show it."""
    text = kernel.asm.get("ptx", "")
    if "float32" in case and "tf32" in text:
        yield "multiplies float32 in tf32"
    if kernel.name == "_select_scattered_kernel" and text:
        maximum, counter = text.rfind(".max.u64"), text.find(".acq_rel.add")
        if counter < 0:
            yield "counts arrivals without ordering memory"
        if "bar.sync" not in text[text.rfind("st.global.b8", 0, counter) : counter]:
            yield "is counted before its flags are written"
        if "ld.global.cg.b8" not in text[counter:]:
            yield "may read stale flags"
        if maximum > 0:
            best = text.find("ld.global.cg.b64", maximum)
            if best < 0:
                yield "may read stale best columns"
            elif "bar.sync" not in text[maximum:best]:
                yield "reads the best columns before they are"
        # 32-bit words are stored to `work` alone, and what one pass over the columns stores the next one loads.
        stored = False
        for step in re.findall(r"st\.global\.(?:v\d\.)?b32|ld\.global|bar\.sync", text):
            if step == "ld.global" and stored:
                yield "reads its work before it is done"
                break
            stored = step.startswith("st") or (stored and step != "bar.sync")


def check(name: str, gpu: Gpu) -> int:
    """Compile every case for one GPU; prints the table and returns how many kernels failed."""
    failures, seen = 0, set()
    tiles.architecture = lambda device: name  # so that the table's entries for this GPU are the ones compiled
    for case, run in cases():
        with compiling_for(gpu):
            run()
            # One cache per device (there is one), of which the first part holds the compiled kernels.
            compiled = [
                kernel for jit in KERNELS for cache in jit.device_caches.values() for kernel in cache[0].values()
            ]
        for kernel in compiled:
            if kernel.hash in seen:
                continue
            seen.add(kernel.hash)
            registers, spilled, matrix = usage(kernel, gpu)
            shared = kernel.metadata.shared
            wrong = [f"spills {spilled}"] * bool(spilled)
            wrong += [f"needs {shared} of {gpu.shared_memory} bytes shared"] * (shared > gpu.shared_memory)
            needs_matrix = "_column_sums" in kernel.name and "float32" not in case
            wrong += [f"has no {gpu.matrix}"] * (needs_matrix and not matrix)
            wrong += unordered(kernel, case)
            verdict = "; ".join(wrong) or "ok"
            print(
                f"{name:<7} {case:<32} {kernel.name:<22} {registers:>4} {shared:>7} {matrix:>4}  {verdict}", flush=True
            )
            failures += bool(wrong)
    for lse, limit in ((True, 3), (False, 4)):
        with compiling_for(gpu) as fake, nothing_is_read_back():
            whole_stage(lse=lse)
        print(
            f"{name:<7} a stage, LSE {'given' if lse else 'not given'}: {len(fake.launches)} launches: {fake.launches}"
        )
        failures += len(fake.launches) > limit
    with compiling_for(gpu), nothing_is_read_back():
        for total in (3000, 1777, 1024, 17):
            packed(torch.bfloat16, 128, total, double=False)
        numbers = variants()
    print(f"{name:<7} compiled over four packed batches, LSE given and not: {numbers}")
    failures += max(numbers.values()) > 1
    with compiling_for(gpu):
        choose("strict", 196)
        choose("strict", 196, first=1)
        numbers = variants()
    print(f"{name:<7} compiled for scores that are aligned and not, with a prior and without: {numbers}")
    failures += max(numbers.values()) > 2
    for lse, batch in ((True, 1), (False, 1), (True, 3)):
        with compiling_for(gpu):
            numbers = variants_of_a_prompt(lse=lse, batch=batch)
        print(
            f"{name:<7} compiled over nine stages of {batch} prompts, LSE {'given' if lse else 'not given'}: {numbers}"
        )
        failures += max(numbers.values()) > 1
    return failures


def main(names: list[str]) -> int:
    print(f"{'GPU':<7} {'case':<32} {'kernel':<22} regs  shared  MMA  (triton {triton.__version__})")
    return int(sum(check(name, GPUS[name]) for name in names or GPUS) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Compiles the package's Triton kernels for GPUs that are not here.

A driver that answers what Triton asks of a GPU's, and then launches nothing, takes the real one's place: the package's own
launchers run on CPU tensors as they are, and what is compiled is what Triton would compile for them on that GPU.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction
from triton.runtime.driver import driver

import adatp_kernels.ops.triton
from adatp_kernels.ops.triton import overlap, tiles
from adatp_kernels.ops.triton.launch import Launcher


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


def _modules() -> list[ModuleType]:
    package = adatp_kernels.ops.triton
    return [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]


def find_kernels() -> list[JITFunction]:
    """Every function of ops/triton that is launched, found by its name: a new one cannot be forgotten here."""
    kernels = {
        name: value
        for module in _modules()
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }
    return list(kernels.values())


KERNELS = find_kernels()
LAUNCHERS = [value for module in _modules() for value in vars(module).values() if isinstance(value, Launcher)]


class CompileOnlyDriver:
    """What Triton asks of a driver, answered for a GPU that is not here; launches do nothing."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.utils = SimpleNamespace(
            # No limit here: the gate itself compares, and says which kernel is too large.
            get_device_properties=lambda device: {
                "max_shared_mem": 1 << 30,
                "multiprocessor_count": 132,
                "warpSize": 32,
            },
            load_binary=lambda name, kernel, shared, device: (object(), object(), 0, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_target(self) -> GPUTarget:
        return self.gpu.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments, **_: None


@contextmanager
def compiling_for(name: str, kernels: list[JITFunction] = KERNELS) -> Iterator[None]:
    """Within, `kernels` are compiled for the GPU called `name`, in the tiles that the table has for it, and not run."""
    before, architecture = driver._active, tiles.architecture
    driver.set_active(CompileOnlyDriver(GPUS[name]))
    tiles.architecture = lambda device: name
    _forget(kernels)
    try:
        yield
    finally:
        _forget(kernels)  # while the driver is there that unloads them
        driver._active, tiles.architecture = before, architecture


def _forget(kernels: list[JITFunction]) -> None:
    """What was compiled, and for which architecture."""
    for launcher in LAUNCHERS:
        launcher.forget()
    for kernel in kernels:
        kernel.device_caches.clear()
    overlap.overlapping.cache_clear()
    tiles.tile_for.cache_clear()


def compiled(kernels: list[JITFunction] = KERNELS) -> list[Any]:
    """What has been compiled since `compiling_for`: of each kernel all variants."""
    # One cache per device (there is one), of which the first part holds the compiled kernels.
    return [variant for kernel in kernels for cache in kernel.device_caches.values() for variant in cache[0].values()]


@contextmanager
def counting_variants(name: str) -> Iterator[list[tuple[str, Any]]]:
    """Within, kernels are neither compiled nor run: each launch's kernel and variant are appended to what is given.

    A variant is what Triton would compile anew for: types, alignments, constants. To compile them takes minutes.
    """
    launches: list[tuple[str, Any]] = []

    def note(*, key: Any, fn: Any, **_: Any) -> bool:
        launches.append((fn.jit_function.__name__, key))
        return True  # done: nothing is compiled

    before = knobs.runtime.jit_cache_hook
    with compiling_for(name):
        knobs.runtime.jit_cache_hook = note
        try:
            yield launches
        finally:
            knobs.runtime.jit_cache_hook = before


@contextmanager
def nothing_is_read_back() -> Iterator[None]:
    """Within, whatever would wait for a GPU to give a tensor's values to the host raises."""

    def refuse(*_: Any, **__: Any) -> None:
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

"""The CUDA kernels wherever the tests run: on a GPU, or else by a machine that plays one on the CPU."""

import ctypes
import importlib
import os
import subprocess
from pathlib import Path

import pytest
import torch
from compiler import compiler_or_skip

from adatp_kernels.ops.native import cuda, recipe
from adatp_kernels.ops.native.build import Library

WITHOUT_A_GPU = Path(__file__).parent / "without_a_gpu"


@pytest.fixture(scope="session")
def played_library(tmp_path_factory):
    """The CUDA library, compiled for a CPU with a device.cuh of ours, and loaded."""
    target, sources, torch_folder = (
        tmp_path_factory.mktemp("cuda") / "played.so",
        recipe.source_folder(),
        recipe.torch_folder(),
    )
    options = ["-O2", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-ffp-contract=off"]
    options += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    options += ["-fsanitize=undefined", "-fno-sanitize=vptr", "-fsanitize-undefined-trap-on-error"]
    options += os.environ.get("ADATP_CXXFLAGS", "").split()
    folders = [
        f"-I{WITHOUT_A_GPU}",
        f"-I{sources / 'include'}",
        f"-I{sources}",
        "-isystem",
        str(torch_folder / "include"),
    ]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [
        compiler_or_skip(),
        *options,
        *folders,
        str(WITHOUT_A_GPU / "library.cpp"),
        "-o",
        str(target),
        *libraries,
    ]
    subprocess.run(command, check=True)
    torch.ops.load_library(str(target))
    library = ctypes.CDLL(str(target))
    library.set_machine.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_bool]
    return library


class Machine:
    """What runs the CUDA kernels: `device` is where tensors belong; a played one can be changed."""

    def __init__(self, device, played=None):
        self.device, self._played = device, played

    def change(self, turns=0, multiprocessors=2, cooperative=True):
        """How threads take turns, how many multiprocessors there are, and whether blocks can wait for each other."""
        if self._played:
            self._played.set_machine(turns, multiprocessors, cooperative)


@pytest.fixture
def machine(request, monkeypatch):
    """The GPU if there is one, else the played one, on which backend "native" runs CPU tensors for the test's length."""
    if torch.cuda.is_available():
        return Machine("cuda")
    played = request.getfixturevalue("played_library")
    backend = importlib.import_module("adatp_kernels.ops.native.backend")  # which needs a compiler
    monkeypatch.setattr(backend, "_library", lambda first: cuda)
    monkeypatch.setattr(cuda, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda, "load", lambda: Library(Path(played._name), "played on a CPU"))
    machine = Machine("cpu", played)
    machine.change()
    return machine

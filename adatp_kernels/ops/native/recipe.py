"""How the compiled libraries are made: sources, compiler, options, one compiler call. Only the standard library is needed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent.parent
# PyTorch's stable ABI as of 2.11: a library runs with that version and every later one.
_COMMON = ("-O3", "-std=c++20", "-shared", "-DTORCH_TARGET_VERSION=0x020b000000000000")
CUDA_ARCHITECTURES = "sm_80 sm_90a sm_100 compute_100"


class BuildError(RuntimeError):
    """Why there is no library."""


class Recipe(NamedTuple):
    """One library: its file, its sources as patterns within ``csrc/``, and what compiles them."""

    library: str
    unit: str
    headers: tuple[str, ...]
    compiler: Callable[[], str]
    flags: Callable[[], list[str]]
    linked: Callable[[Path, Path], list[str]]  # given PyTorch's folder, and one for files that last as long as the call

    def sources(self) -> list[Path]:
        """Every file that the library is made of, in a fixed order."""
        folder = source_folder()
        return sorted(path for pattern in (self.unit, *self.headers) for path in folder.glob(pattern))

    def key(self) -> str:
        """A name for what would be compiled, by what, how and for which machine."""
        digest = hashlib.sha256()
        version = subprocess.run([self.compiler(), "--version"], capture_output=True, check=False).stdout
        for part in (self.library.encode(), version, " ".join(self.flags()).encode(), platform.machine().encode()):
            digest.update(part + b"\0")
        for path in self.sources():
            digest.update(path.relative_to(source_folder()).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def source_folder() -> Path:
    """``csrc/``: within the installed package, or beside it in a checkout."""
    return next((folder for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if folder.is_dir()), PACKAGE / "csrc")


def torch_folder() -> Path:
    """Where PyTorch is installed; it need not be importable, as during an isolated build."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(sysconfig.get_path("platlib")) / "torch"
    if not (folder / "include").is_dir():
        raise BuildError("PyTorch's headers are not here")
    return folder


def cpu_compiler() -> str:
    """The C++ compiler: $CXX, or the first of g++, c++ and clang++ on PATH."""
    chosen = os.environ.get("CXX")
    found = [chosen] if chosen else [path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))]
    if not found:
        raise BuildError("no C++ compiler: none of g++, c++, clang++ on PATH, and CXX is not set")
    return found[0]


def cpu_flags() -> list[str]:
    """The C++ compiler's options; $ADATP_CXXFLAGS come last, for sanitizers and the like."""
    own = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
    return [*_COMMON, *own, *os.environ.get("ADATP_CXXFLAGS", "").split()]


def cuda_compiler() -> str:
    """The CUDA compiler: nvcc on PATH, or of $CUDA_HOME."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc") or (home and shutil.which("nvcc", path=os.path.join(home, "bin")))
    if not found:
        raise BuildError("no CUDA compiler: nvcc is not on PATH, and CUDA_HOME names no folder that has it")
    return found


def cuda_flags() -> list[str]:
    """nvcc's options: machine code for every sm_… of $ADATP_CUDA_ARCHS, PTX for every compute_…."""
    codes = []
    for name in os.environ.get("ADATP_CUDA_ARCHS", CUDA_ARCHITECTURES).replace(",", " ").replace(";", " ").split():
        kind, _, number = name.partition("_")
        if kind not in ("sm", "compute") or not number:
            raise BuildError(
                f"ADATP_CUDA_ARCHS: {name!r} is no architecture; give names such as {CUDA_ARCHITECTURES!r}"
            )
        codes.append(f"-gencode=arch=compute_{number},code={name}")
    return [*_COMMON, "-DUSE_CUDA", "-Xcompiler=-fPIC,-fvisibility=hidden", *codes]


def _linked_with_cuda(torch: Path, scratch: Path) -> list[str]:
    """PyTorch's CUDA library; one with the only function that is called of it takes its place where PyTorch has none."""
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        source, stub = scratch / "stub.cpp", scratch / "libtorch_cuda.so"
        source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
        _run([cpu_compiler(), "-shared", "-fPIC", f"-Wl,-soname,{stub.name}", str(source), "-o", str(stub)])
    return [f"-L{scratch}", "-Xlinker=-z,defs", "-ltorch_cuda"]


CPU = Recipe(
    "adatp_cpu.so", "cpu/bindings.cpp", ("include/adatp/*.h", "include/adatp/*.inl"),
    cpu_compiler, cpu_flags, lambda torch, scratch: [],
)  # fmt: skip
CUDA = Recipe(
    "adatp_cuda.so", "cuda/bindings.cu", ("include/adatp/*.h", "include/adatp/cuda/*.cuh"),
    cuda_compiler, cuda_flags, _linked_with_cuda,
)  # fmt: skip


def compile_library(recipe: Recipe, target: Path, *options: str) -> str:
    """Compile a library into `target`, which appears only when it is whole; returns what the compiler says.

    Raises
    ------
    BuildError
        With the compiler's own words.
    """
    folder, torch, cxx = source_folder(), torch_folder(), recipe.compiler()
    if not (folder / recipe.unit).is_file():
        raise BuildError(f"no sources in {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unfinished = Path(scratch) / recipe.library
        command = [
            cxx, *recipe.flags(), *options, f"-I{folder / 'include'}", "-isystem", str(torch / "include"),
            str(folder / recipe.unit), "-o", str(unfinished),
            f"-L{torch / 'lib'}", *recipe.linked(torch, Path(scratch)), "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        result = _run(command)
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, target)
    return result.stdout + result.stderr


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if result.returncode:
        raise BuildError(f"{command[0]} failed: {result.stderr.strip()[-2000:]}")
    return result

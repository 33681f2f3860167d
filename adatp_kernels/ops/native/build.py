"""Finds the compiled CPU library, or builds it: one compiler call, the result kept for the next process.

An installed package may bring the library along (``setup.py`` calls `compile_library`). Otherwise it is built at first
use into a cache, under a name that stands for its sources, compiler and flags. Only the standard library is needed here.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent.parent
LIBRARY = "adatp_cpu.so"
# PyTorch's stable ABI as of 2.11: the library runs with that version and every later one.
FLAGS = (
    "-O3", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=fast",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
)  # fmt: skip

logger = logging.getLogger("adatp_kernels")


class BuildError(RuntimeError):
    """Why there is no library."""


class Library(NamedTuple):
    """A library that can be loaded, and in a few words where it comes from."""

    path: Path
    origin: str


def source_folder() -> Path:
    """``csrc/``: within the installed package, or beside it in a checkout."""
    return next((folder for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if folder.is_dir()), PACKAGE / "csrc")


def sources() -> list[Path]:
    """Every file that the library is made of, in a fixed order."""
    folder = source_folder()
    return sorted(path for part in ("include", "cpu") for path in (folder / part).rglob("*") if path.is_file())


def torch_folder() -> Path:
    """Where PyTorch is installed; it need not be importable, as during an isolated build."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(sysconfig.get_path("platlib")) / "torch"
    if not (folder / "include").is_dir():
        raise BuildError("PyTorch's headers are not here")
    return folder


def compiler() -> str:
    """The C++ compiler: $CXX, or the first of g++, c++ and clang++ on PATH."""
    chosen = os.environ.get("CXX")
    found = [chosen] if chosen else [path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))]
    if not found:
        raise BuildError("no C++ compiler: none of g++, c++, clang++ on PATH, and CXX is not set")
    return found[0]


def flags() -> list[str]:
    """The compiler's options; $ADATP_CXXFLAGS come last, for sanitizers and the like."""
    return [*FLAGS, *os.environ.get("ADATP_CXXFLAGS", "").split()]


def compile_library(target: Path) -> None:
    """Compile ``csrc/cpu`` into `target`, which appears only when it is whole.

    Raises
    ------
    BuildError
        With the compiler's own words.
    """
    folder, torch = source_folder(), torch_folder()
    units = [path for path in sources() if path.suffix == ".cpp"]
    if not units:
        raise BuildError(f"no sources in {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    command = [
        compiler(), *flags(), f"-I{folder / 'include'}", "-isystem", str(torch / "include"),
        *map(str, units), "-o", unfinished, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode:
            raise BuildError(f"{command[0]} failed: {result.stderr.strip()[-2000:]}")
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, target)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def find_or_build(anew: bool = False) -> Library:
    """The library that came with the package, the cached one, or one built now; with `anew`, certainly the last.

    Raises
    ------
    BuildError
        If there is none and none can be built.
    """
    if (PACKAGE / LIBRARY).is_file() and not anew:
        return Library(PACKAGE / LIBRARY, "installed with the package")
    cxx = compiler()
    folder = cache_folder() / _key(cxx)
    if _is_whole(folder / LIBRARY) and not anew:
        return Library(folder / LIBRARY, f"cached in {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "lock"):
            if _is_whole(folder / LIBRARY) and not anew:  # another process has built it meanwhile
                return Library(folder / LIBRARY, f"cached in {folder}")
            again = " again, because the one there was damaged," if anew or (folder / LIBRARY).exists() else ""
            _compile(folder, cxx)
            return Library(folder / LIBRARY, f"built{again} with {cxx} into {folder}")
    except OSError as error:
        unusable = folder
        folder = Path(tempfile.mkdtemp(prefix="adatp-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _compile(folder, cxx)
        return Library(
            folder / LIBRARY, f"built with {cxx} for this process alone: {unusable} cannot be written, {error}"
        )


def cache_folder() -> Path:
    """$ADATP_CACHE, or ``adatp_kernels`` in the user's cache."""
    chosen = os.environ.get("ADATP_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # A user without a home has no cache either: no folder can be made there.
    return Path(os.devnull if home.startswith("~") else home) / "adatp_kernels"


def _compile(folder: Path, cxx: str) -> None:
    logger.warning("compiling the CPU library with %s, once, in about ten seconds", cxx)
    compile_library(folder / LIBRARY)
    _checksum_file(folder).write_text(_checksum(folder / LIBRARY))


def _key(cxx: str) -> str:
    digest = hashlib.sha256()
    version = subprocess.run([cxx, "--version"], capture_output=True, check=False).stdout
    for part in (version, " ".join(flags()).encode(), platform.machine().encode()):
        digest.update(part + b"\0")
    for path in sources():
        digest.update(path.relative_to(source_folder()).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _checksum_file(folder: Path) -> Path:
    return folder / "sha256"


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_whole(path: Path) -> bool:
    """A damaged library could do anything when it is loaded, so its checksum is compared before."""
    recorded = _checksum_file(path.parent)
    return path.is_file() and recorded.is_file() and recorded.read_bytes() == _checksum(path).encode()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however that ends."""
    if sys.platform == "win32":  # no fcntl there; what two processes build at once is the same
        yield
        return
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

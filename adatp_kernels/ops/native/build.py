"""Finds a compiled library, or builds it: one compiler call, the result kept for the next process.

An installed package may bring its library along (``setup.py`` compiles the CPU's). Otherwise it is built at first use into
a cache, under a name that stands for its sources, compiler and flags. Only the standard library is needed here.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adatp_kernels.ops.native.recipe import PACKAGE, Recipe, compile_library

logger = logging.getLogger("adatp_kernels")


class Library(NamedTuple):
    """A library that can be loaded, and in a few words where it comes from."""

    path: Path
    origin: str


def find_or_build(recipe: Recipe, anew: bool = False) -> Library:
    """A recipe's library: the one that came with the package, the cached one, or one built now; with `anew`, certainly the last.

    Raises
    ------
    BuildError
        If there is none and none can be built.
    """
    if (PACKAGE / recipe.library).is_file() and not anew:
        return Library(PACKAGE / recipe.library, "installed with the package")
    cxx = recipe.compiler()
    folder = cache_folder() / recipe.key()
    if _is_whole(folder / recipe.library) and not anew:
        return Library(folder / recipe.library, f"cached in {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "lock"):
            if _is_whole(folder / recipe.library) and not anew:  # another process has built it meanwhile
                return Library(folder / recipe.library, f"cached in {folder}")
            again = " again, because the one there was damaged," if anew or (folder / recipe.library).exists() else ""
            _compile(recipe, folder, cxx)
            return Library(folder / recipe.library, f"built{again} with {cxx} into {folder}")
    except OSError as error:
        unusable = folder
        folder = Path(tempfile.mkdtemp(prefix="adatp-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _compile(recipe, folder, cxx)
        return Library(
            folder / recipe.library, f"built with {cxx} for this process alone: {unusable} cannot be written, {error}"
        )


def cache_folder() -> Path:
    """$ADATP_CACHE, or ``adatp_kernels`` in the user's cache."""
    chosen = os.environ.get("ADATP_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # A user without a home has no cache either: no folder can be made there.
    return Path(os.devnull if home.startswith("~") else home) / "adatp_kernels"


def _compile(recipe: Recipe, folder: Path, cxx: str) -> None:
    logger.warning("compiling %s with %s, once", recipe.library, cxx)
    compile_library(recipe, folder / recipe.library)
    _checksum_file(folder).write_text(_checksum(folder / recipe.library))


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

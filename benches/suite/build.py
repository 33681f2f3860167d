"""Has the native library ready before a dozen processes would race for it: finds it, or compiles it once, and loads it."""

from __future__ import annotations

import sys

import torch

from adatp_kernels.ops.native.build import find_or_build
from adatp_kernels.ops.native.recipe import CPU, CUDA, BuildError
from suite import rows


def main(dry: bool, load: bool = True) -> int:
    """Write a row that says where the library comes from."""
    recipe = CPU if dry else CUDA
    try:
        library = find_or_build(recipe)
        if load:
            torch.ops.load_library(str(library.path))
    except (BuildError, OSError) as error:
        rows.add({"library": recipe.library, "status": "absent", "why": str(error)[-500:]})
        return 1
    rows.add({"library": recipe.library, "status": "ready", "origin": library.origin})
    return 0


if __name__ == "__main__":
    sys.exit(main("--dry" in sys.argv, load="--carry" not in sys.argv))

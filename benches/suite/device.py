"""Which machine and which versions: rows that all later ones are to be read with. A process of its own, so that its memory is freed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys

import torch
from measure import ceilings, device_name

from suite import rows

PACKAGES = ("torch", "triton", "transformers", "numpy", "pytest", "pytest-xdist", "hypothesis", "flash-attn")
RIVALS = ("flash-colreduce", "flashinfer-python")
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "g++")


def main(dry: bool) -> int:
    """Write the two rows."""
    if not dry and not torch.cuda.is_available():
        return rows.fail("no CUDA device here; --dry walks through the suite on a CPU")
    device = torch.device("cpu" if dry else "cuda")
    row = {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in (*PACKAGES, *RIVALS)}},
        "tools": {name: shutil.which(name) for name in TOOLS},
    }
    if not dry:
        properties = torch.cuda.get_device_properties(device)
        row |= {
            "capability": f"{properties.major}{properties.minor}",
            "cuda": torch.version.cuda,
            "multiprocessors": properties.multi_processor_count,
            "L2 bytes": properties.L2_cache_size,
            "memory bytes": properties.total_memory,
        }
    rows.add(row)
    rows.add({"ceilings": ceilings(device, quick=dry)})
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main("--dry" in sys.argv))

"""``adatp doctor``: which versions, devices and backends are here."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from adatp_kernels.ops import backend_report

# What the package runs on, and what it uses where it is installed.
PACKAGES = ("adatp-kernels", "torch", "triton", "transformers", "torchvision", "flash-attn", "av")


def tell() -> None:
    """Print it."""
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} not installed")
    print(f"CUDA device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    print(f"backends, fastest first:\n{backend_report()}")

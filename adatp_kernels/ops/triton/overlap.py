"""Programmatic dependent launch: a stage's next kernel is on the chip before the last one is done, and waits there.

A kernel that follows another of ours is launched so, and waits before it touches memory; the kernel before it signals at once
that the next may come. The first kernel of a stage is launched as any other, so it need not know what came before.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adatp_kernels.ops.triton import tiles


@triton.jit
def begin(FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr):
    """What every kernel of a stage does first: wait for the one before it, and let the next one come."""
    if FOLLOWS:
        gdc_wait()
    if SIGNALS:
        gdc_launch_dependents()


@functools.cache
def overlapping(device: torch.device, *, follows: bool) -> dict[str, bool]:
    """A kernel's last constants: whether it `follows` another of ours, as far as the device (Hopper or newer) has such launches."""
    name = tiles.architecture(device)
    here = name.startswith("sm_") and int(name[3:]) >= 90
    return {"FOLLOWS": follows and here, "SIGNALS": here}

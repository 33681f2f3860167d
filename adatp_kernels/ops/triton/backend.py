"""The Triton backend as dispatch sees it: its operations, and which tensors it refuses."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from adatp_kernels.ops.triton.column_sums import column_sums, row_lse
from adatp_kernels.ops.triton.gather import gather
from adatp_kernels.ops.triton.select import _select_kernel, select
from adatp_kernels.ops.triton.stage import prune

__all__ = ["column_sums", "gather", "prune", "refuses", "row_lse", "select"]

# Decided when the kernels were made: with TRITON_INTERPRET=1 they run on CPU tensors, slowly, and only there.
INTERPRETED = isinstance(_select_kernel, InterpretedFunction)


def refuses(operation: str, *tensors: Tensor) -> str | None:
    """Why these kernels cannot run an operation on `tensors`; None if they can.

    The tensors are those that decide: query and key, or scores, or indices.
    """
    device = tensors[0].device
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"its kernels run on {'CPU tensors, by the interpreter' if INTERPRETED else 'CUDA tensors'}, not on {device}"
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return "it computes in float32, not in float64"
    if operation in ("row_lse", "column_sums", "prune") and tensors[0].shape[-1] > 256:
        return f"the head dim may be at most 256, not {tensors[0].shape[-1]}"
    return None

"""The Triton backend as dispatch sees it: its operations, and which tensors it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.ops.arguments import PackedScoring, Pruning, Scoring
from adatp_kernels.ops.triton import column_sums as _scores
from adatp_kernels.ops.triton import column_sums_varlen as _packed
from adatp_kernels.ops.triton import gather as _gather
from adatp_kernels.ops.triton import row_lse as _lse
from adatp_kernels.ops.triton import select as _select
from adatp_kernels.ops.triton import stage as _stage
from adatp_kernels.ops.triton.operands import INTERPRETED


def refuses(operation: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> str | None:
    """Why these kernels cannot run an operation on `tensors`; None if they can.

    The tensors are those that decide: query and key, or scores, or indices; `moved` are those that gather moves.
    """
    device = tensors[0].device
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"its kernels run on {'CPU tensors, by the interpreter' if INTERPRETED else 'CUDA tensors'}, not on {device}"
    if torch.float64 in [tensor.dtype for tensor in tensors]:
        return "it computes in float32, not in float64"
    if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in (*tensors, *moved)]):
        return "it has no gradient; call it under torch.no_grad()"
    if operation in ("row_lse", "column_sums", "column_sums_varlen", "prune"):
        if tensors[0].shape[-1] > 256:
            return f"the head dim may be at most 256, not {tensors[0].shape[-1]}"
        heads = tensors[1].shape[1] * (1 if operation == "column_sums_varlen" else tensors[1].shape[0])
        if heads > 65535:
            return f"batch times key heads may be at most 65535, not {heads}"
    if operation == "select" and tensors[0].shape[0] > 65535:
        return f"the batch may be at most 65535, not {tensors[0].shape[0]}"
    return None if INTERPRETED else _gpu_refuses(operation, device)


@functools.cache
def _gpu_refuses(operation: str, device: torch.device) -> str | None:
    if torch.version.hip:
        if operation in ("select", "prune"):
            return "on ROCm its barrier does not wait for other wavefronts' stores, which selection depends on"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0, not {torch.cuda.get_device_capability(device)}"
    return None


def _on_its_device(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Launch where the tensors are; Triton would launch on the current device."""

    @functools.wraps(operation)
    def run(first: Tensor | Scoring | PackedScoring | Pruning, *arguments: Any, **options: Any) -> Any:
        if first.device.type != "cuda" or first.device.index == torch.cuda.current_device():
            return operation(first, *arguments, **options)
        with torch.cuda.device(first.device):
            return operation(first, *arguments, **options)

    return run


row_lse = _on_its_device(_lse.row_lse)
column_sums = _on_its_device(_scores.column_sums)
column_sums_varlen = _on_its_device(_packed.column_sums_varlen)
select = _on_its_device(_select.select)
gather = _on_its_device(_gather.gather)
prune = _on_its_device(_stage.prune)

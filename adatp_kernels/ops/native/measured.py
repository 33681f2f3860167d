"""Where "auto" takes the native backend on a GPU: where it was measured to be faster than Triton's kernels. So far nowhere.

Importing this loads no library.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adatp_kernels.ops.triton.tiles import architecture


@dataclass(frozen=True)
class UpTo:
    """The largest shape it was faster at: batch rows, text rows, and the keys' or scores' columns."""

    batch: int
    rows: int
    columns: int


# By architecture (as in `tiles`), operation, and the query's dtype and head dim; where scores are given, theirs and 0, and
# no text rows count. One entry a line, for a benchmark to write:
#   ("sm_90", "prune", torch.bfloat16, 128): UpTo(batch=1, rows=64, columns=6272),
FASTER: dict[tuple[str, str, torch.dtype, int], UpTo] = {}


def is_faster(operation: str, *tensors: Tensor) -> bool:
    """Whether the table has an operation on such tensors: those that decide, as `dispatch.implementation` has them."""
    first, scores = tensors[0], tensors[0] if operation == "select" else tensors[2] if len(tensors) > 2 else None
    dtype, head_dim = (scores.dtype, 0) if scores is not None else (first.dtype, first.shape[-1])
    most = FASTER.get((architecture(first.device), operation, dtype, head_dim))
    if most is None:
        return False
    rows, columns = (0, scores.shape[-1]) if scores is not None else (first.shape[2], tensors[1].shape[2])
    return first.shape[0] <= most.batch and rows <= most.rows and columns <= most.columns

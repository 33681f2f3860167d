"""What a user would otherwise do, written plainly; every suite checks it equal before it is timed."""

from __future__ import annotations

import torch
from torch import Tensor


def materialised_map(query: Tensor, key: Tensor, rows: int, columns: slice) -> Tensor:
    """The whole attention map, as ``output_attentions`` gives it, and then the mean of its last rows.

    Parameters
    ----------
    query : Tensor [B, Hq, N, D]
        All rows of the sequence.
    key : Tensor [B, Hkv, N, D]
    rows : int
        The last so many rows score.
    columns : slice
        The visual columns.
    """
    return text_rows(query, key, query.shape[2], columns, scoring=rows)


def text_rows(query: Tensor, key: Tensor, rows: int, columns: slice, scoring: int | None = None) -> Tensor:
    """The map's last rows alone: repeat_kv, matmul, softmax, mean. Arguments as for `materialised_map`."""
    repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query[:, :, -rows:] @ repeated.transpose(-1, -2) * query.shape[-1] ** -0.5
    hidden = torch.ones(rows, key.shape[2], dtype=torch.bool, device=key.device).triu(1 + key.shape[2] - rows)
    probability = scores.masked_fill(hidden, float("-inf")).softmax(
        -1, dtype=torch.promote_types(scores.dtype, torch.float32)
    )
    return probability[:, :, -(scoring or rows) :, columns].mean((1, 2))


def topk_and_sort(scores: Tensor, kept: int) -> Tensor:
    """The best columns of one segment without deduplication, ascending: what FastV does."""
    return scores.topk(kept, dim=1).indices.sort(dim=1).values


def deduplicate_topk_and_sort(scores: Tensor, segments: int, cells: int, kept: int) -> Tensor:
    """One column per position of every segment by amax, then each segment's best by topk, then a sort.

    It wants segments of equally many whole frames, and returns the right columns only without ties.
    """
    grid = scores.unflatten(1, (segments, -1, cells))  # [B, S, F, P]
    best, frame = grid.max(dim=2)
    position = best.topk(kept, dim=2).indices  # [B, S, k]
    start = torch.arange(segments, device=scores.device)[:, None] * grid.shape[2] * cells
    return (start + frame.gather(2, position) * cells + position).flatten(1).sort(dim=1).values


def index_select(indices: Tensor, tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
    """A call per tensor; a batch of one."""
    return [tensor.index_select(dim, indices[0]) for tensor, dim in zip(tensors, dims, strict=True)]


def gather_each(indices: Tensor, tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
    """A torch.gather per tensor; any batch."""
    moved = []
    for tensor, dim in zip(tensors, dims, strict=True):
        view = [len(indices) if d == 0 else indices.shape[1] if d == dim else 1 for d in range(tensor.dim())]
        shape = [indices.shape[1] if d == dim else size for d, size in enumerate(tensor.shape)]
        moved.append(tensor.gather(dim, indices.view(view).expand(shape)))
    return moved

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
    repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ repeated.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))[:, :, -rows:, columns].mean(
        (1, 2)
    )


def text_rows(query: Tensor, key: Tensor, rows: int, columns: slice) -> Tensor:
    """The map's last rows alone: repeat_kv, matmul, softmax, mean. Arguments as for `materialised_map`."""
    repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query[:, :, -rows:] @ repeated.transpose(-1, -2) * query.shape[-1] ** -0.5
    hidden = torch.ones(rows, key.shape[2], dtype=torch.bool, device=key.device).triu(1 + key.shape[2] - rows)
    return (
        scores.masked_fill(hidden, float("-inf"))
        .softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., columns]
        .mean((1, 2))
    )

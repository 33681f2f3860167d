"""The operations as algorithm.md defines them, written without a look at the package.

Attention materialises the whole map in float64; selection is plain Python over lists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

ERRORS = (TypeError, ValueError, RuntimeError)


def names(argument: str):
    """Expect an error whose message names `argument` before its first colon."""
    return pytest.raises(ERRORS, match=rf"^[^:]*\b{re.escape(argument)}\b")


def attention_logits(query: Tensor, key: Tensor, visible: Tensor, scale: float) -> Tensor:
    """[B, Hq, T, N] in the inputs' precision, −inf where `visible` (broadcastable) is False."""
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (query @ keys.mT * scale).masked_fill(~visible, -math.inf)


def visible_keys(query: Tensor, key: Tensor, query_start: int, key_mask: Tensor | None) -> Tensor:
    """[B, 1, T, N]: row i sees key j iff j ≤ query_start + i and j is no padding."""
    rows, columns = query.shape[2], key.shape[2]
    visible = torch.tensor([[j <= query_start + i for j in range(columns)] for i in range(rows)]).reshape(
        1, 1, rows, columns
    )
    return visible if key_mask is None else visible & key_mask[:, None, None, :]


def row_lse(
    query: Tensor, key: Tensor, *, query_start: int, scale: float | None = None, key_mask: Tensor | None = None
) -> Tensor:
    scale = query.shape[3] ** -0.5 if scale is None else scale
    visible = visible_keys(query, key, query_start, key_mask)
    return attention_logits(query.double(), key.double(), visible, scale).logsumexp(-1)


def column_sums(
    query: Tensor,
    key: Tensor,
    *,
    query_start: int,
    key_range: tuple[int, int],
    scale: float | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Column means of the materialised map; with another `dtype`, what plain PyTorch makes of it."""
    scale = query.shape[3] ** -0.5 if scale is None else scale
    visible = visible_keys(query, key, query_start, key_mask)
    logits = attention_logits(query.to(dtype), key.to(dtype), visible, scale)
    # softmax of a row of −inf is NaN: such a row contributes nothing.
    probability = logits.softmax(-1).masked_fill(~visible, 0.0)
    result = []
    for b in range(len(query)):
        rows = probability[b] if query_mask is None else probability[b][:, query_mask[b]]
        result.append(rows.sum((0, 1)) / max(1, rows.shape[0] * rows.shape[1]))
    return torch.stack(result)[:, key_range[0] : key_range[1]].double()


def column_sums_varlen(
    query: Tensor,
    key: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    query_range: Tensor | None = None,
    key_range: Tensor | None = None,
    query_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The map of all sequences at once: rows and keys of different sequences do not see each other."""
    of_row, of_key = (torch.repeat_interleave(c.diff()) for c in (cu_seqlens_q, cu_seqlens_k))
    row, column = torch.arange(len(query)) - cu_seqlens_q[of_row], torch.arange(len(key)) - cu_seqlens_k[of_key]
    offset = (cu_seqlens_k.diff() - cu_seqlens_q.diff())[of_row]
    visible = (of_row[:, None] == of_key) & (column <= (row + offset)[:, None])
    logits = attention_logits(
        query.to(dtype).transpose(0, 1)[None], key.to(dtype).transpose(0, 1)[None], visible, query.shape[2] ** -0.5
    )
    probability = logits[0].softmax(-1).masked_fill(~visible, 0.0)  # [Hq, total_q, total_k]
    scores = torch.ones(len(query), dtype=torch.bool) if query_mask is None else query_mask
    if query_range is not None:
        scores = scores & (row >= query_range[of_row, 0]) & (row < query_range[of_row, 1])
    counted = torch.bincount(of_row[scores], minlength=len(cu_seqlens_k) - 1)[of_key].clamp(min=1)
    result = probability[:, scores].sum((0, 1)).double() / (query.shape[1] * counted)
    if key_range is not None:
        result[(column < key_range[of_key, 0]) | (column >= key_range[of_key, 1])] = 0.0
    return result


def attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output and LSE in the inputs' precision; 0 and −inf for a row that sees nothing."""
    logits = attention_logits(query, key, visible, scale)
    values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    probability = logits.softmax(-1).masked_fill(~visible, 0.0)
    return probability @ values, logits.logsumexp(-1)


def assert_as_good_as_plain(actual: Tensor, expected: Tensor, plain: Tensor, relative: float) -> None:
    """At most twice plain PyTorch's error plus 1e-5, and a relative L2 error that no zero output passes."""
    assert actual.shape == expected.shape
    worst = lambda value: (value.double() - expected).abs().max().item()  # noqa: E731
    assert worst(actual) <= 2 * worst(plain) + 1e-5
    assert (actual.double() - expected).norm() <= relative * expected.norm()


def select(
    scores: Tensor,
    segments: Tensor,
    positions: Tensor,
    budgets: Sequence[Sequence[int]],
    *,
    dedup: str = "strict",
    soft_weight: float = 0.0,
    prior: Tensor | None = None,
) -> list[list[int]]:
    """Steps 5 to 8 of algorithm.md for tensors [B, N] and budgets [B][S]."""
    if prior is not None:
        scores = scores * prior
    lowered = (scores * soft_weight).tolist()  # in the scores' own precision, so that ties stay ties
    return [
        select_row(*row, dedup)
        for row in zip(scores.tolist(), lowered, segments.tolist(), positions.tolist(), budgets, strict=True)
    ]  # fmt: skip


def select_row(
    scores: list[float],
    lowered: list[float],
    segments: list[int],
    positions: list[int],
    budgets: Sequence[int],
    dedup: str,
) -> list[int]:
    kept = [j for j, segment in enumerate(segments) if segment == -1]
    for s, budget in enumerate(budgets):
        members = [j for j, segment in enumerate(segments) if segment == s]
        best: dict[int, int] = {}  # position -> its representative
        for j in sorted(members, key=lambda j: better_first(scores[j], j)):
            best.setdefault(positions[j], j)
        representatives = set(best.values())
        if dedup == "strict":
            members = sorted(representatives)
        value = {j: lowered[j] if dedup == "soft" and j not in representatives else scores[j] for j in members}
        kept += sorted(members, key=lambda j: better_first(value[j], j))[:budget]
    return sorted(kept)


def better_first(score: float, index: int) -> tuple[bool, float, int]:
    """Sort key: higher scores first, NaN last, the smaller index among equals (−0 equals 0)."""
    nan = math.isnan(score)
    return nan, 0.0 if nan else -score, index

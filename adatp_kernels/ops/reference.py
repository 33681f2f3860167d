"""The operations in plain PyTorch: the definition in code, that every faster backend is tested against.

Any device; arithmetic in float32, or in float64 for float64 input. No tensor shape depends on data
and nothing waits for the device, but for the lengths of packed sequences. Arguments arrive checked (``functional.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from adatp_kernels.ops.arguments import PackedScoring, Pruning, Scoring, Selection

NEG_INF = float("-inf")


def refuses(operation: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> str | None:
    """Why the reference cannot run an operation on `tensors`: never."""
    return None


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Within, products are made in what was widened for them; autocast would round it again. Not every device has it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def visible_logits(
    query: Tensor, key: Tensor, query_start: int, first_key: int, scale: float, key_mask: Tensor | None
) -> Tensor:
    """Scaled scores [B, Hkv, G, T, N] of every row against ``key``, −inf where the row may not look.

    ``key`` holds the keys from coordinate ``first_key`` on.
    """
    batch, query_heads, rows, dim = query.shape
    kv_heads, columns = key.shape[1], key.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    # The heads that share a key head become rows of one matrix product; keys are never repeated.
    packed = query.to(dtype).reshape(batch, kv_heads, query_heads // kv_heads * rows, dim)  # [B, Hkv, G·T, D]
    with without_autocast(query.device):
        logits = (packed @ key.to(dtype).transpose(-1, -2) * scale).view(batch, kv_heads, -1, rows, columns)
    row = torch.arange(rows, device=query.device) + query_start
    column = torch.arange(columns, device=query.device) + first_key
    visible = column <= row[:, None]  # [T, N]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, None, :]
    return logits.masked_fill(~visible, NEG_INF)


def row_lse(query: Tensor, key: Tensor, *, query_start: int, scale: float, key_mask: Tensor | None) -> Tensor:
    """Natural-log LSE [B, Hq, T] of each row's visible scores, −inf for a row that sees nothing."""
    return visible_logits(query, key, query_start, 0, scale, key_mask).logsumexp(-1).flatten(1, 2)


def column_sums(scoring: Scoring) -> Tensor:
    """Mean over heads and rows of the softmax probabilities of the columns in ``key_range``."""
    query, key, query_start, scale = scoring.query, scoring.key, scoring.query_start, scoring.scale
    lse, key_mask, query_mask = scoring.lse, scoring.key_mask, scoring.query_mask
    if lse is None:
        lse = row_lse(query, key, query_start=query_start, scale=scale, key_mask=key_mask)
    first, last = scoring.key_range
    logits = visible_logits(
        query, key[:, :, first:last], query_start, first, scale, None if key_mask is None else key_mask[:, first:last]
    )
    lse = lse.to(logits.dtype).reshape(*logits.shape[:-1], 1)
    # A row that sees nothing has lse = −inf; exp(x − inf) makes it contribute 0 instead of NaN.
    probability = (logits - lse.masked_fill(lse == NEG_INF, float("inf"))).exp()  # [B, Hkv, G, T, v1-v0]
    heads, rows = query.shape[1], query.shape[2]
    if query_mask is None:
        return probability.sum((1, 2, 3)) / (heads * rows)
    # where, not a product: a masked row may hold NaN.
    probability = probability.sum((1, 2)).masked_fill(~query_mask[:, :, None], 0.0)
    return probability.sum(1) / (heads * query_mask.sum(1, keepdim=True).clamp(min=1))


def column_sums_varlen(packed: PackedScoring, each: Callable[[Scoring], Tensor] = column_sums) -> Tensor:
    """`column_sums`, or `each`, of every packed sequence alone, zero outside its range; waits for lengths and ranges."""
    query, key, lse, query_mask = packed.query, packed.key, packed.lse, packed.query_mask
    scores = torch.zeros(len(key), dtype=torch.promote_types(query.dtype, torch.float32), device=key.device)
    bounds = [
        list(itertools.pairwise(cumulative.tolist())) for cumulative in (packed.cu_seqlens_q, packed.cu_seqlens_k)
    ]
    whole = [[(0, end - first) for first, end in side] for side in bounds]
    ranges = [
        given
        if chosen is None
        else [(max(0, a), min(b, n)) for (a, b), (_, n) in zip(chosen.tolist(), given, strict=True)]
        for chosen, given in zip((packed.query_range, packed.key_range), whole, strict=True)
    ]
    for (row, row_end), (first, end), rows, columns in zip(*bounds, *ranges, strict=True):
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            continue
        scoring = slice(row + rows[0], row + rows[1])
        own = Scoring(
            query[None, scoring].transpose(1, 2),
            key[None, first:end].transpose(1, 2),
            query_start=(end - first) - (row_end - row) + rows[0],
            key_range=(columns[0], columns[1]),
            scale=packed.scale,
            lse=None if lse is None else lse[None, :, scoring],
            key_mask=None,
            query_mask=None if query_mask is None else query_mask[None, scoring],
        )
        scores[first + columns[0] : first + columns[1]] = each(own)[0]
    return scores


def select(scores: Tensor, selection: Selection) -> Tensor:
    """Debias and select (``algorithm.md``, steps 5 to 8) by sorting; see `functional.select`."""
    segments, positions, budgets = selection.segments, selection.positions, selection.budgets
    columns = scores.shape[1]
    if selection.prior is not None:
        scores = scores * selection.prior.to(scores.dtype)
    order = _rank(scores)
    if selection.dedup != "off":
        first = _is_first_of_group(order, segments, positions)
        if selection.dedup == "soft":
            scores = torch.where(first, scores, scores * selection.soft_weight)
            order = _rank(scores)
        else:  # the removed go behind every candidate of their segment
            order = _stable_sort(order, (~first).to(torch.int64))
    order = _stable_sort(order, segments)
    # Columns now stand by segment, best first; a column's rank is its distance from its segment's start.
    segment = segments.gather(1, order)
    start = torch.searchsorted(segment, segment)
    rank = torch.arange(columns, device=scores.device) - start
    budget = budgets.gather(1, segment.clamp(min=0)) if budgets.shape[1] else torch.zeros_like(segment)
    kept = (rank < budget) | (segment < 0)
    # The kept columns' own numbers, ascending; the others are sent behind them and cut off.
    return torch.where(kept, order, columns).sort(dim=1).values[:, : selection.num_selected]


def count_selectable(segments: Tensor, positions: Tensor, num_segments: int, *, strict: bool) -> Tensor:
    """Per row, the candidates of each segment and, last, the always-kept columns: [B, num_segments + 1]."""
    order = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    counted = (
        _is_first_of_group(order, segments, positions) | (segments < 0)
        if strict
        else torch.ones_like(segments, dtype=torch.bool)
    )
    slot = torch.where(segments < 0, num_segments, segments)
    return torch.zeros(len(segments), num_segments + 1, dtype=torch.int64, device=segments.device).scatter_add_(
        1, slot, counted.long()
    )


def _rank(scores: Tensor) -> Tensor:
    """Column numbers [B, N] by falling score; equal scores by rising column, NaN behind everything."""
    nan = scores.isnan()
    order = scores.masked_fill(nan, NEG_INF).sort(dim=1, descending=True, stable=True).indices
    return _stable_sort(order, nan.to(torch.int64))


def _stable_sort(order: Tensor, by: Tensor) -> Tensor:
    """`order` sorted by ``by[order]``, ascending; what is equal stays as it was."""
    return order.gather(1, by.gather(1, order).sort(dim=1, stable=True).indices)


def _is_first_of_group(order: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
    """Per column [B, N]: does it come first, in `order`, among those of its (segment, position)?"""
    order = _stable_sort(_stable_sort(order, positions), segments)
    changes = [
        ids.gather(1, order).diff(dim=1, prepend=ids.new_full((len(ids), 1), -2)) != 0 for ids in (segments, positions)
    ]
    return torch.empty_like(changes[0]).scatter_(1, order, changes[0] | changes[1])


# torch.gather lacks these dtypes; their bits travel as integers of the same size.
_NOT_GATHERED = {
    getattr(torch, name): bits
    for names, bits in (
        (("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), torch.int8),
        (("uint16",), torch.int16),
        (("uint32",), torch.int32),
        (("uint64",), torch.int64),
    )
    for name in names
}


def gather(indices: Tensor, tensors: Sequence[Tensor], dims: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Of each tensor, the tokens `indices`; ``dims`` holds each one's (batch, token) dimension."""
    return tuple(_gather(indices, tensor, batch, token) for tensor, (batch, token) in zip(tensors, dims, strict=True))


def _gather(indices: Tensor, tensor: Tensor, batch: int, token: int) -> Tensor:
    if len(indices) == 1:
        return tensor.index_select(token, indices[0])
    shape = list(tensor.shape)
    shape[batch], shape[token] = indices.shape
    tensor = tensor.expand(*[shape[d] if d == batch else n for d, n in enumerate(tensor.shape)])
    if tensor.dtype in _NOT_GATHERED:
        bits = _NOT_GATHERED[tensor.dtype]
        return _gather(indices, tensor.view(bits), batch, token).view(tensor.dtype)
    view = [1] * tensor.dim()
    view[batch], view[token] = indices.shape
    lined_up = indices if batch < token else indices.T
    return tensor.gather(token, lined_up.reshape(view).expand(shape))


def prune(pruning: Pruning) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Score, select, gather; text outside the columns survives. See `functional.prune`."""
    scores, on_phase, device = pruning.scores, pruning.on_phase, pruning.device
    if scores is None:
        scores = column_sums(pruning.scoring)
    on_phase("score")
    columns = select(scores, pruning.selection)
    first, length = pruning.sequence
    before = torch.arange(first, device=device).expand(len(columns), -1)
    after = torch.arange(first + scores.shape[1], length, device=device).expand(len(columns), -1)
    indices = torch.cat([before, columns + first, after], dim=1)
    on_phase("select")
    moved = gather(indices, pruning.tensors, pruning.dims)
    on_phase("compact")
    return indices, moved

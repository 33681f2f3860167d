"""Checks of the operations' tensors: types, shapes and devices.

Values are read, which waits for a device, only where a caller leaves `num_selected` to be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.config import DEDUPLICATION
from adatp_kernels.errors import choice, integer, number
from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Selection

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LSE = (torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def tensor(name: str, value: Any, dtypes: Sequence[torch.dtype], device: torch.device | None = None) -> Tensor:
    """`value` if it is a tensor of one of `dtypes` on `device`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected one of {[str(d).removeprefix('torch.') for d in dtypes]}, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected device {device}, like the tensors before it, got {value.device}")
    return value


def shape(name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    """Raise unless `value` has exactly the `expected` shape."""
    if value.shape != tuple(expected):
        raise ValueError(f"{name}: expected shape {meaning} = {list(expected)}, got {list(value.shape)}")


def attention_inputs(query: Tensor, key: Tensor, query_start: int, scale: float | None, mask: Tensor | None) -> float:
    """Check what `row_lse` and `column_sums` share; returns the scale."""
    tensor("query", query, FLOATS)
    tensor("key", key, FLOATS, query.device)
    rows, keys = query.shape, key.shape
    if len(rows) != 4 or 0 in rows:
        raise ValueError(f"query: expected a non-empty shape [B, Hq, T, D], got {list(rows)}")
    if len(keys) != 4 or 0 in keys:
        raise ValueError(f"key: expected a non-empty shape [B, Hkv, N, D], got {list(keys)}")
    if keys[0] != rows[0] or keys[3] != rows[3]:
        raise ValueError(f"key: expected query's batch and head dim, {rows[0]} and {rows[3]}, got shape {list(keys)}")
    _dtype_and_heads(query, key)
    integer("query_start", query_start, low=0)
    key_mask(mask, key)
    return rows[3] ** -0.5 if scale is None else number("scale", scale, low=0.0, open_low=True)


def key_mask(mask: Tensor | None, key: Tensor) -> None:
    """Check which keys nobody sees."""
    if mask is not None:
        tensor("key_mask", mask, (torch.bool,), key.device)
        shape("key_mask", mask, (key.shape[0], key.shape[2]), "[B, N]")


def _dtype_and_heads(query: Tensor, key: Tensor) -> None:
    if key.dtype != query.dtype:
        raise TypeError(f"key: expected query's dtype {query.dtype}, got {key.dtype}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query: expected a multiple of key's {key.shape[1]} heads, got {query.shape[1]}")


def packed_inputs(
    query: Tensor,
    key: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    query_range: Tensor | None,
    key_range: Tensor | None,
    scale: float | None,
    lse: Tensor | None,
    query_mask: Tensor | None,
) -> float:
    """Check what `column_sums_varlen` takes; returns the scale."""
    tensor("query", query, FLOATS)
    tensor("key", key, FLOATS, query.device)
    for name, value, meaning in (("query", query, "[total_q, Hq, D]"), ("key", key, "[total_k, Hkv, D]")):
        if value.dim() != 3 or 0 in value.shape:
            raise ValueError(f"{name}: expected a non-empty shape {meaning}, got {list(value.shape)}")
    if key.shape[2] != query.shape[2]:
        raise ValueError(f"key: expected query's head dim {query.shape[2]}, got shape {list(key.shape)}")
    _dtype_and_heads(query, key)
    for name, value, total in (
        ("cu_seqlens_q", cu_seqlens_q, len(query)),
        ("cu_seqlens_k", cu_seqlens_k, len(key)),
    ):
        tensor(name, value, (torch.int32, torch.int64), query.device)
        if value.dim() != 1 or len(value) < 2:
            raise ValueError(f"{name}: expected shape [B + 1] with B at least 1, got {list(value.shape)}")
        if value.device.type == "cpu":
            _cumulative(name, value, total)
    shape("cu_seqlens_q", cu_seqlens_q, cu_seqlens_k.shape, "[B + 1], like cu_seqlens_k,")
    for name, ranges, cumulative in (
        ("query_range", query_range, cu_seqlens_q),
        ("key_range", key_range, cu_seqlens_k),
    ):
        if ranges is not None:
            tensor(name, ranges, (torch.int32, torch.int64), query.device)
            shape(name, ranges, (len(cumulative) - 1, 2), "[B, 2]")
            if ranges.device.type == "cpu":
                _within(name, ranges.tolist(), cumulative.diff().tolist())
    if lse is not None:
        tensor("lse", lse, (torch.float32, torch.float64), query.device)
        shape("lse", lse, (query.shape[1], query.shape[0]), "[Hq, total_q]")
    if query_mask is not None:
        tensor("query_mask", query_mask, (torch.bool,), query.device)
        shape("query_mask", query_mask, (len(query),), "[total_q]")
    return query.shape[2] ** -0.5 if scale is None else number("scale", scale, low=0.0, open_low=True)


def _cumulative(name: str, value: Tensor, total: int) -> None:
    bounds = value.tolist()
    if bounds[0] != 0 or bounds[-1] > total or bounds != sorted(bounds):
        raise ValueError(f"{name}: expected bounds that rise from 0 to at most the {total} tokens given, got {bounds}")


def _within(name: str, ranges: list[list[int]], lengths: list[int]) -> None:
    if not all(0 <= first <= last <= length for (first, last), length in zip(ranges, lengths, strict=True)):
        raise ValueError(f"{name}: expected 0 ≤ first ≤ last ≤ length for the lengths {lengths}, got {ranges}")


def column_range(key_range: Any, num_keys: int) -> tuple[int, int]:
    """`key_range` as two ints within the keys."""
    if not isinstance(key_range, Sequence) or len(key_range) != 2:
        raise TypeError(f"key_range: expected a pair (v0, v1), got {key_range!r}")
    first, last = (integer("key_range", bound, low=0) for bound in key_range)
    if not first < last <= num_keys:
        raise ValueError(f"key_range: expected 0 ≤ v0 < v1 ≤ N = {num_keys}, got {(first, last)}")
    return first, last


def row_tensors(query: Tensor, lse: Tensor | None, query_mask: Tensor | None) -> None:
    """Check what belongs to the query's rows."""
    if lse is not None:
        tensor("lse", lse, _LSE, query.device)
        if lse.shape != query.shape[:3]:
            shape("lse", lse, query.shape[:3], "[B, Hq, T]")
    if query_mask is not None:
        tensor("query_mask", query_mask, (torch.bool,), query.device)
        shape("query_mask", query_mask, (query.shape[0], query.shape[2]), "[B, T]")


def score_tensor(scores: Tensor) -> None:
    """Check the scores of `select`."""
    tensor("scores", scores, (torch.float32, torch.float64))
    if scores.dim() != 2 or 0 in scores.shape:
        raise ValueError(f"scores: expected a non-empty shape [B, N], got {list(scores.shape)}")


def selection(
    columns: tuple[int, int],
    device: torch.device,
    segments: Tensor,
    positions: Tensor,
    budgets: Any,
    dedup: str,
    soft_weight: float,
    prior: Tensor | None,
    num_selected: int | None,
    num_positions: int | None,
    segment_ranges: Tensor | None,
    longest_segment: int | None,
) -> Selection:
    """Check and normalise what `select` takes beside its scores, for (B, N) `columns` on a device.

    Without `num_selected` the budgets are checked, too, and K is counted, which waits for the device.
    """
    segments = _per_column("segments", segments, columns, device, INTEGERS, torch.int64)
    positions = _per_column("positions", positions, columns, device, INTEGERS, torch.int64)
    table = budget_table(budgets, columns[0], device)
    choice("dedup", dedup, DEDUPLICATION)
    weight = number("soft_weight", soft_weight, low=0.0, high=1.0)
    if prior is not None:
        prior = _per_column("prior", prior, columns, device, FLOATS)
    if num_positions is not None:
        integer("num_positions", num_positions, low=1)
    if (segment_ranges is None) != (longest_segment is None):
        raise ValueError("segment_ranges, longest_segment: expected both or neither")
    if segment_ranges is not None:
        integer("longest_segment", longest_segment, low=1)
        segment_ranges = _range_table(segment_ranges, table.shape, device)
    if num_selected is None:
        num_selected = _count(segments, positions, table, dedup)
        if segment_ranges is not None:
            _check_ranges(segment_ranges, longest_segment, segments, table)
    elif integer("num_selected", num_selected, low=0) > columns[1]:
        raise ValueError(f"num_selected: expected at most the {columns[1]} columns, got {num_selected}")
    return Selection(
        segments, positions, table, dedup, weight, prior, num_selected, num_positions, segment_ranges, longest_segment
    )


def _count(segments: Tensor, positions: Tensor, budgets: Tensor, dedup: str) -> int:
    """K, after checking that every segment can fill its budget. Waits for the device."""
    num_segments = budgets.shape[1]
    low, high = (int(segments.min()), int(segments.max())) if segments.numel() else (-1, -1)
    if low < -1 or high >= num_segments:
        raise ValueError(
            f"segments: expected ids from -1 to {num_segments - 1}, the budgets given, got {low if low < -1 else high}"
        )
    if bool(((positions < 0) & (segments >= 0)).any()):
        raise ValueError("positions: expected at least 0 wherever a column has a segment")
    if budgets.numel() and int(budgets.min()) < 0:
        raise ValueError(f"budgets: expected at least 0, got {int(budgets.min())}")
    counts = reference.count_selectable(segments, positions, num_segments, strict=dedup == "strict")
    short = (budgets > counts[:, :-1]).nonzero()
    if len(short):
        row, segment = short[0].tolist()
        candidates = "distinct positions" if dedup == "strict" else "columns"
        raise ValueError(
            f"budgets: segment {segment} of batch row {row} has {int(counts[row, segment])} {candidates}, fewer than its budget "
            f"{int(budgets[row, segment])}"
        )
    totals = (budgets.sum(1) + counts[:, -1]).tolist()
    if len(set(totals)) > 1:
        raise ValueError(f"budgets: every batch row must keep equally many columns, got {totals}")
    return totals[0] if totals else 0


def _range_table(ranges: Tensor, budgets: torch.Size, device: torch.device) -> Tensor:
    """Ranges [S, 3] or [B, S, 3] as int64 [B, S, 3] whose last dimension is dense."""
    tensor("segment_ranges", ranges, INTEGERS, device)
    expected = (*budgets, 3)
    if ranges.shape != expected:
        if ranges.shape != expected[1:]:
            shape("segment_ranges", ranges, expected, "[B, S, 3]")
        ranges = ranges.expand(expected)
    if ranges.dtype != torch.int64:
        ranges = ranges.to(torch.int64)
    return ranges if ranges.stride(2) == 1 else ranges.contiguous()


def _check_ranges(ranges: Tensor, longest: int | None, segments: Tensor, budgets: Tensor) -> None:
    """That the ranges hold all that may survive, each its own segment, and give it room. Waits for the device."""
    columns = segments.shape[1]
    for row, (bounds, ids, kept) in enumerate(zip(ranges.tolist(), segments.tolist(), budgets.tolist(), strict=True)):
        goes = [id >= 0 and kept[id] == 0 for id in ids]  # and need not be in a range
        column = place = 0
        for segment in sorted(range(len(bounds)), key=lambda s: bounds[s][:2]):
            first, last, start = bounds[segment]
            if first == last:
                continue
            own = ids[first:last]
            if not (
                column <= first < last <= columns
                and all(goes[column:first])
                and set(own) <= {segment, -1}
                and place == start
            ):
                raise ValueError(
                    f"segment_ranges: expected ranges of columns that follow each other within {columns}, each with its segment "
                    f"and always-kept columns alone, with all columns that may survive, and the place of its first survivor; "
                    f"segment {segment} of batch row {row} has {bounds[segment]}, after column {column} and {place} survivors"
                )
            column, place = last, place + kept[segment] + own.count(-1)
        if bounds and not all(goes[column:]):
            raise ValueError(f"segment_ranges: the ranges of batch row {row} end at column {column} of {columns}")
    widest = int((ranges[..., 1] - ranges[..., 0]).max()) if ranges.numel() else 0
    if longest is not None and longest < widest:
        raise ValueError(f"longest_segment: expected at least {widest}, the longest of segment_ranges, got {longest}")


def _per_column(
    name: str,
    value: Tensor,
    columns: tuple[int, int],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    wanted: torch.dtype | None = None,
) -> Tensor:
    """A tensor [N] or [B, N] as [B, N], a view, unless it must become of the `wanted` dtype."""
    tensor(name, value, dtypes, device)
    given = value.shape
    if given != columns:
        if given != columns[1:]:
            shape(name, value, columns, "[B, N]")
        value = value[None] if columns[0] == 1 else value.expand(columns)  # the first is faster
    return value if wanted is None or value.dtype == wanted else value.to(wanted)


def budget_table(budgets: Any, batch_size: int, device: torch.device) -> Tensor:
    """Budgets [S] or [B, S], from the host or the device, as int64 [B, S] on the device."""
    try:
        table = budgets if isinstance(budgets, Tensor) else torch.as_tensor(budgets, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"budgets: expected integers of shape [B, S] or [S], got {budgets!r}") from error
    if table.dtype not in INTEGERS and table.numel():
        raise TypeError(f"budgets: expected integers, got {table.dtype}")
    given = table.shape
    if len(given) == 1:
        table = table.expand(batch_size, -1)
    elif len(given) != 2 or given[0] != batch_size:
        raise ValueError(f"budgets: expected shape [B, S] with B = {batch_size}, or [S], got {list(given)}")
    return table if table.dtype == torch.int64 and table.device == device else table.to(device, torch.int64)


def token_dims(tensors: Any, dims: Any) -> list[Any]:
    """One entry of `dims` for each of the tensors."""
    if type(tensors) not in (list, tuple) and (isinstance(tensors, Tensor) or not isinstance(tensors, Sequence)):
        raise TypeError(f"tensors: expected a sequence of tensors, got {type(tensors).__name__}")
    if type(dims) is int or _is_integral(dims):
        return [dims] * len(tensors)
    if type(dims) not in (list, tuple) and (not isinstance(dims, Sequence) or isinstance(dims, str)):
        raise TypeError(f"dims: expected an int or a sequence with one entry per tensor, got {dims!r}")
    if len(dims) != len(tensors):
        raise ValueError(f"dims: expected an int or one entry for each of the {len(tensors)} tensors, got {dims!r}")
    return list(dims)


def token_tensors(
    tensors: Any, dims: Any, batch_size: int, device: torch.device, length: int | None = None
) -> list[tuple[int, int]]:
    """Check tensors that travel; returns each one's (batch, token) dimension, counted from zero."""
    pairs = []
    for place, (value, entry) in enumerate(zip(tensors, token_dims(tensors, dims), strict=True)):
        if not isinstance(value, Tensor):
            raise TypeError(f"tensors[{place}]: expected a tensor, got {type(value).__name__}")
        given = value.shape
        if (
            type(entry) is int
            and 0 < entry < len(given)
            and given[0] == batch_size
            and length in (None, given[entry])
            and value.device == device
        ):  # what nearly all of them are
            pairs.append((0, entry))
            continue
        if value.device != device:
            raise ValueError(
                f"tensors[{place}]: expected device {device}, like the tensors before it, got {value.device}"
            )
        batch, token = _dim_pair(place, value, entry, batch_size)
        if length is not None and value.shape[token] != length:
            raise ValueError(
                f"tensors[{place}]: expected {length} tokens in dimension {token}, got shape {list(value.shape)}"
            )
        pairs.append((batch, token))
    return pairs


def gather_inputs(indices: Tensor, tensors: Any, dims: Any) -> list[tuple[int, int]]:
    """Check what `gather` takes; returns each tensor's (batch, token) dimension, counted from zero."""
    tensor("indices", indices, (torch.int64,))
    if indices.dim() != 2:
        raise ValueError(f"indices: expected shape [B, K], got {list(indices.shape)}")
    pairs = token_tensors(tensors, dims, len(indices), indices.device)
    # Reading the largest index would wait for a GPU; on the host it costs nothing to be sure.
    if indices.device.type == "cpu" and indices.numel():
        low, high = int(indices.min()), int(indices.max())
        for place, (value, (_, token)) in enumerate(zip(tensors, pairs, strict=True)):
            if not 0 <= low <= high < value.shape[token]:
                raise ValueError(
                    f"indices: expected values in [0, {value.shape[token]}), the tokens of tensors[{place}], got {low} to {high}"
                )
    return pairs


def _dim_pair(place: int, value: Tensor, entry: Any, batch_size: int) -> tuple[int, int]:
    given = value.shape
    name = f"tensors[{place}]"
    pair = (
        (0, entry) if type(entry) is int or isinstance(entry, str) or not isinstance(entry, Sequence) else tuple(entry)
    )
    if len(pair) != 2 or not all(type(dim) is int or _is_integral(dim) for dim in pair):
        raise TypeError(f"dims: expected an int or a pair (batch, token) for {name}, got {entry!r}")
    batch, token = int(pair[0]), int(pair[1])
    dims = len(given)
    if not (-dims <= batch < dims and -dims <= token < dims):
        raise ValueError(f"dims: {entry!r} lies outside {name} of shape {list(given)}")
    batch, token = batch % dims, token % dims
    if batch_size != 1:
        if batch == token:
            raise ValueError(f"dims: batch and token dimension of {name} must differ, got {entry!r}")
        if given[batch] not in (1, batch_size):
            raise ValueError(
                f"{name}: expected batch size {batch_size} or 1 in dimension {batch}, got shape {list(given)}"
            )
    return batch, token


def _is_integral(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)

"""Checks of the operations' tensors: types, shapes and devices only, nothing that waits for a device."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.errors import integer, number

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    if list(value.shape) != list(expected):
        raise ValueError(f"{name}: expected shape {meaning} = {list(expected)}, got {list(value.shape)}")


def attention_inputs(
    query: Tensor, key: Tensor, query_start: int, scale: float | None, key_mask: Tensor | None
) -> float:
    """Check what `row_lse` and `column_sums` share; returns the scale."""
    tensor("query", query, FLOATS)
    tensor("key", key, FLOATS, query.device)
    for name, value, meaning in (("query", query, "[B, Hq, T, D]"), ("key", key, "[B, Hkv, N, D]")):
        if value.dim() != 4 or 0 in value.shape:
            raise ValueError(f"{name}: expected a non-empty shape {meaning}, got {list(value.shape)}")
    if key.dtype != query.dtype:
        raise TypeError(f"key: expected query's dtype {query.dtype}, got {key.dtype}")
    if key.shape[0] != query.shape[0] or key.shape[3] != query.shape[3]:
        raise ValueError(
            f"key: expected query's batch and head dim, {query.shape[0]} and {query.shape[3]}, got shape {list(key.shape)}"
        )
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query: expected a multiple of key's {key.shape[1]} heads, got {query.shape[1]}")
    integer("query_start", query_start, low=0)
    if key_mask is not None:
        tensor("key_mask", key_mask, (torch.bool,), query.device)
        shape("key_mask", key_mask, (key.shape[0], key.shape[2]), "[B, N]")
    return query.shape[3] ** -0.5 if scale is None else number("scale", scale, low=0.0, open_low=True)


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
        tensor("lse", lse, (torch.float32, torch.float64), query.device)
        shape("lse", lse, query.shape[:3], "[B, Hq, T]")
    if query_mask is not None:
        tensor("query_mask", query_mask, (torch.bool,), query.device)
        shape("query_mask", query_mask, (query.shape[0], query.shape[2]), "[B, T]")


def score_tensor(scores: Tensor) -> None:
    """Check the scores of `select`."""
    tensor("scores", scores, (torch.float32, torch.float64))
    if scores.dim() != 2 or 0 in scores.shape:
        raise ValueError(f"scores: expected a non-empty shape [B, N], got {list(scores.shape)}")


def per_column(name: str, value: Tensor, scores: Tensor) -> Tensor:
    """An integer tensor [N] or [B, N] as int64 [B, N]; a view where it is int64 already."""
    tensor(name, value, INTEGERS, scores.device)
    if value.dim() == 1:
        value = value[None].expand(len(scores), -1) if len(value) == scores.shape[1] else value
    shape(name, value, scores.shape, "[B, N]")
    return value.to(torch.int64)


def prior_table(prior: Tensor, scores: Tensor) -> Tensor:
    """A floating tensor [N] or [B, N] as [B, N] in the scores' dtype."""
    tensor("prior", prior, FLOATS, scores.device)
    if prior.dim() == 1:
        prior = prior[None].expand(len(scores), -1) if len(prior) == scores.shape[1] else prior
    shape("prior", prior, scores.shape, "[B, N]")
    return prior.to(scores.dtype)


def budget_table(budgets: Any, scores: Tensor) -> Tensor:
    """Budgets [S] or [B, S], from the host or the device, as int64 [B, S] on the scores' device."""
    try:
        table = torch.as_tensor(budgets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"budgets: expected integers of shape [B, S] or [S], got {budgets!r}") from error
    if table.numel() and table.dtype not in INTEGERS:
        raise TypeError(f"budgets: expected integers, got {table.dtype}")
    if table.dim() == 1:
        table = table[None].expand(len(scores), -1)
    if table.dim() != 2 or len(table) != len(scores):
        raise ValueError(
            f"budgets: expected shape [B, S] with B = {len(scores)}, or [S], got {list(torch.as_tensor(budgets).shape)}"
        )
    return table.to(scores.device, torch.int64)


def token_dims(tensors: Any, dims: Any) -> list[Any]:
    """One entry of `dims` for each of the tensors."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(f"tensors: expected a sequence of tensors, got {type(tensors).__name__}")
    if isinstance(dims, Integral) and not isinstance(dims, bool):
        return [dims] * len(tensors)
    if not isinstance(dims, Sequence) or isinstance(dims, str):
        raise TypeError(f"dims: expected an int or a sequence with one entry per tensor, got {dims!r}")
    if len(dims) != len(tensors):
        raise ValueError(f"dims: expected an int or one entry for each of the {len(tensors)} tensors, got {dims!r}")
    return list(dims)


def gather_inputs(
    indices: Tensor, tensors: Sequence[Tensor], dims: Any, length: int | None = None
) -> list[tuple[int, int]]:
    """Check what `gather` takes; returns each tensor's (batch, token) dimension, counted from zero."""
    tensor("indices", indices, (torch.int64,))
    if indices.dim() != 2:
        raise ValueError(f"indices: expected shape [B, K], got {list(indices.shape)}")
    dims = token_dims(tensors, dims)
    pairs = []
    for number_, (value, entry) in enumerate(zip(tensors, dims, strict=True)):
        name = f"tensors[{number_}]"
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.device != indices.device:
            raise ValueError(f"{name}: expected indices' device {indices.device}, got {value.device}")
        pairs.append(_dim_pair(name, value, entry, len(indices)))
        size = value.shape[pairs[-1][1]]
        if length is not None and size != length:
            raise ValueError(
                f"{name}: expected {length} tokens in dimension {pairs[-1][1]}, got shape {list(value.shape)}"
            )
        # Reading the largest index would wait for a GPU; on the host it costs nothing to be sure.
        if (
            indices.device.type == "cpu"
            and indices.numel()
            and not 0 <= int(indices.min()) <= int(indices.max()) < size
        ):
            raise ValueError(
                f"indices: expected values in [0, {size}), the tokens of {name}, got {int(indices.min())} to {int(indices.max())}"
            )
    return pairs


def _dim_pair(name: str, value: Tensor, entry: Any, batch_size: int) -> tuple[int, int]:
    pair = tuple(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else (0, entry)
    if len(pair) != 2 or not all(isinstance(dim, Integral) and not isinstance(dim, bool) for dim in pair):
        raise TypeError(f"dims: expected an int or a pair (batch, token) for {name}, got {entry!r}")
    batch, token = (int(dim) for dim in pair)
    if not all(-value.dim() <= dim < value.dim() for dim in (batch, token)):
        raise ValueError(f"dims: {entry!r} lies outside {name} of shape {list(value.shape)}")
    batch, token = batch % value.dim(), token % value.dim()
    if batch_size > 1:
        if batch == token:
            raise ValueError(f"dims: batch and token dimension of {name} must differ, got {entry!r}")
        if value.shape[batch] not in (1, batch_size):
            raise ValueError(
                f"{name}: expected batch size {batch_size} or 1 in dimension {batch}, got shape {list(value.shape)}"
            )
    return batch, token

"""What a stage is called with: checked in full at a prompt's first stage, and later to be like that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp_kernels.ops import checks


class Accepted(NamedTuple):
    """The arguments of a stage that was let through, but for sizes that a stage changes.

    Attributes
    ----------
    scale : float
        What the scores are multiplied with.
    pairs : list of (int, int)
        Batch and token dimension of each tensor that travels.
    """

    scale: float
    pairs: list[tuple[int, int]]
    given_scale: Any
    dims: Any
    dtype: torch.dtype
    heads: int
    key_heads: int
    head_dim: int


def accept(
    before: Accepted | None,
    batch: int,
    length: int,
    device: torch.device,
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    dims: Any,
    scale: Any,
    lse: Tensor | None,
    key_mask: Tensor | None,
) -> Accepted:
    """`before` if the arguments are like those, or else what they are, after all checks.

    Parameters
    ----------
    before : Accepted, optional
        The prompt's last stage.
    batch, length, device
        Of what is left of the prompt.
    query, key, tensors, dims, scale, lse, key_mask
        As for `AdaTPPruner.forward`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument.
    """
    if before is not None and _are_alike(
        before, batch, length, device, query, key, tensors, dims, scale, lse, key_mask
    ):
        return before
    factor = checks.attention_inputs(query, key, 0, scale, key_mask)
    checks.row_tensors(query, lse, None)
    rows, keys = query.shape, key.shape
    if rows[2] != length:
        raise ValueError(f"query: expected the {length} rows that are left of the prompt, got shape {list(rows)}")
    if keys[2] < length:
        raise ValueError(f"key: expected at least the {length} tokens that are left, got shape {list(keys)}")
    if rows[0] != batch:
        raise ValueError(f"query: expected the batch size {batch} that begin was given, got {rows[0]}")
    if key.device != device:
        raise ValueError(f"state: expected device {key.device}, where key is, got {device}; move it by state.to")
    pairs = checks.token_tensors(tensors, dims, batch, device, length)
    return Accepted(factor, pairs, scale, _own(dims), query.dtype, rows[1], keys[1], rows[3])


def _own(dims: Any) -> Any:
    """`dims` where equal ones always mean the same dimensions, in a copy that the caller cannot change; else None.

    What counts from behind depends on a tensor's number of dimensions.
    """
    entries = dims if type(dims) in (list, tuple) else (dims,)
    flat = [number for entry in entries for number in (entry if type(entry) is tuple else (entry,))]
    if not all(type(number) is int and number >= 0 for number in flat):
        return None
    return [*dims] if type(dims) is list else dims


def _are_alike(
    before: Accepted,
    batch: int,
    length: int,
    device: torch.device,
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    dims: Any,
    scale: Any,
    lse: Tensor | None,
    key_mask: Tensor | None,
) -> bool:
    """Whether nothing but sizes has changed, and those are right; if in doubt, no."""
    if type(query) is not Tensor or type(key) is not Tensor or type(tensors) not in (list, tuple):
        return False
    keys = key.shape
    if not (
        query.shape == (batch, before.heads, length, before.head_dim)
        and len(keys) == 4
        and (keys[0], keys[1], keys[3]) == (batch, before.key_heads, before.head_dim)
        and keys[2] >= length
        and query.dtype is key.dtype is before.dtype
        and query.device == key.device == device
        and scale == before.given_scale
        and type(dims) is type(before.dims)
        and dims == before.dims
        and len(tensors) == len(before.pairs)
    ):
        return False
    if lse is not None or key_mask is not None:
        checks.row_tensors(query, lse, None)
        checks.key_mask(key_mask, key)
    for value, (batch_dim, token) in zip(tensors, before.pairs, strict=True):
        if type(value) is not Tensor or value.device != device:
            return False
        shape = value.shape
        if max(batch_dim, token) >= len(shape) or shape[token] != length:
            return False
        if batch != 1 and shape[batch_dim] not in (1, batch):
            return False
    return True

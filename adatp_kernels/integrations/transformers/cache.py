"""Key-value caches of a pruned prompt: which columns each layer holds, and layers that were compacted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class CompactedLayer(DynamicLayer):
    """A dynamic cache layer from which tokens were dropped, but which still reports its logical length.

    Positions of new tokens are counted from the logical length, masks are sized from the physical one.

    Attributes
    ----------
    dropped : int
        Logical minus physical length.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    @classmethod
    def of(cls, layer: DynamicLayer) -> CompactedLayer:
        """`layer` if it is one already, else a new one that holds the same tensors."""
        if isinstance(layer, cls):
            return layer
        new = cls()
        new.__dict__.update(layer.__dict__)
        return new

    def get_seq_length(self) -> int:
        return self.physical_length + (self.dropped if self.physical_length else 0)

    @property
    def physical_length(self) -> int:
        """Tokens really held."""
        return super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.physical_length + query_length, self.dropped

    def reset(self) -> None:
        super().reset()
        self.dropped = 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ValueError(
                "compact_cache=True: this cache was compacted and cannot be cropped, which assisted decoding needs; use compact_cache=False"
            )


@dataclass(eq=False)
class PrunedColumns:
    """Which of the prompt's columns each layer of one cache holds.

    A mask is made for layer 0, which holds every column; a later layer needs a part of it.

    Attributes
    ----------
    covered : int
        Columns accounted for; what comes later is in every layer.
    layers : dict of int to LongTensor [B, n]
        For each layer that was pruned, the columns it holds of the first `covered`, ascending.
    """

    covered: int = 0
    layers: dict[int, Tensor] = field(default_factory=dict)

    def extended(self, layer: int, past: int, kept: Tensor) -> Tensor:
        """The columns of `layer` once the `kept` tokens [B, L] of a prompt follow `past` columns."""
        older = self.layers.get(layer)
        if older is None:
            older = torch.arange(self.covered, device=kept.device).expand(len(kept), -1)
        since = torch.arange(self.covered, past, device=kept.device).expand(len(kept), -1)
        return torch.cat([older, since, kept + past], dim=1)

    def of_mask(self, layer: int, mask: Tensor) -> Tensor:
        """The part of a mask [..., N] that `layer` needs: its own columns, and all that came later."""
        columns = self.layers[layer]
        return torch.cat([take_columns(mask, columns), mask[..., self.covered :]], dim=-1)


def take_columns(mask: Tensor, columns: Tensor) -> Tensor:
    """``mask[b, …, columns[b]]`` for a mask [B, …, N]."""
    mask = mask.expand(len(columns), *mask.shape[1:])
    index = columns.view(len(columns), *[1] * (mask.dim() - 2), -1)
    return mask.gather(-1, index.expand(*mask.shape[:-1], -1))


def take_rows(mask: Tensor, rows: Tensor) -> Tensor:
    """``mask[b, :, rows[b], :]`` for a mask [B, 1 or H, T, N]."""
    mask = mask.expand(len(rows), *mask.shape[1:])
    return mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def check_cache(cache: Any) -> None:
    """Raise unless a prompt can be pruned into `cache`."""
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise TypeError(f"past_key_values: expected a transformers Cache, got {type(cache).__name__}")
    if getattr(cache, "offloading", False):
        raise ValueError("past_key_values: an offloaded cache is not supported by accelerate; use a plain DynamicCache")
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    unsupported = sorted(kind.__name__ for kind in kinds - {DynamicLayer, CompactedLayer, None} if kind is not None)
    if unsupported:
        raise ValueError(
            f"past_key_values: accelerate supports a DynamicCache of full attention, got layers of type {unsupported}"
        )


def physical_length(cache: Any, layer: int) -> int:
    """Tokens that `layer` of `cache` really holds."""
    if cache is None or layer >= len(cache.layers):
        return 0
    held = cache.layers[layer]
    return held.physical_length if isinstance(held, CompactedLayer) else held.get_seq_length()

"""Cache layers of a pruned prompt: which columns they hold, and how long they are for everybody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _Carrying(DynamicLayer):
    """A cache layer of ours. The last one of a cache carries for all of it what a continuation needs, the first one guards it.

    Attributes
    ----------
    rope_deltas : tuple of (int, Tensor [B, 1])
        From which column on M-RoPE's positions are how far from the columns' numbers.
    served : bool
        Whether it may be read: always, but for the first of layers that hold different columns, which needs an acceleration around
        the forward that reads it.
    dropped : int
        How many tokens are counted of which no layer holds anything, nor has a mask a column. Positions go on from the length
        with them, masks are sized without.
    interrupted : bool
        Whether a forward was interrupted when it had dropped tokens, so that nothing says which are here.
    """

    keys: Any
    values: Any
    rope_deltas: tuple[tuple[int, Tensor], ...] = ()
    served = True
    dropped = 0
    interrupted = False

    @classmethod
    def like(cls, layer: DynamicLayer, **more: Any) -> Any:
        """A layer with the tensors of `layer`, and what else it says."""
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__, **more)
        return new

    def mask_length(self) -> int:
        """Columns that a mask has for what the layer accounts for."""
        return super().get_seq_length()

    def get_seq_length(self) -> int:
        return self.mask_length() + self.dropped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.mask_length() + query_length, self.dropped

    @property
    def is_croppable(self) -> bool:
        return not self.dropped

    def crop(self, tokens_to_remove: int) -> None:
        self._check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def _check_crop(self, tokens_to_remove: int) -> None:
        if self.dropped and tokens_to_remove != 0:
            raise ValueError("compact_cache: a cache that was compacted cannot be cropped; use compact_cache=False")

    def reset(self) -> None:
        # Emptied: older versions of transformers leave as many zeros, which would be attended to.
        self.keys = self.values = None
        self.is_initialized = False
        self.rope_deltas, self.served, self.dropped, self.interrupted = (), True, 0, False

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.served:
            raise ValueError(
                "past_key_values: expected to be read by an accelerated model, as layers of this cache hold different parts of a pruned "
                "prompt, got a model without acceleration; ask before remove(), or accelerate it again"
            )
        if self.interrupted:
            raise ValueError(
                "past_key_values: expected a cache whose prompts were read to their end, got one that an interrupted forward left in the "
                "middle of pruning; begin with a new one"
            )
        return super().update(*args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._carry(lambda deltas: deltas.index_select(0, beam_idx.to(deltas.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._carry(lambda deltas: deltas.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._carry(lambda deltas: deltas[indices])

    def _carry(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.rope_deltas:
            self.rope_deltas = tuple((start, change(deltas)) for start, deltas in self.rope_deltas)


class WholeLayer(_Carrying):
    """A cache layer that holds every column, beside others that hold a part."""


class PrunedLayer(_Carrying):
    """A cache layer that holds a part of the prompt's columns and reports the length of all of them.

    Masks are made for layer 0, which holds every column; this one takes its part of them.

    Attributes
    ----------
    columns : LongTensor [B, n]
        The columns that its first n entries stand for, ascending. What came later is all there.
    covered : int
        Columns that the n entries account for: entry ``n + i`` stands for column ``covered + i``.
    """

    columns: Tensor
    covered: int

    @classmethod
    def of(cls, layer: DynamicLayer, columns: Tensor, covered: int) -> PrunedLayer:
        """`layer`'s tensors, of which the first ``columns.shape[1]`` entries stand for `columns`."""
        return cls.like(layer, columns=columns, covered=covered)

    def mask_length(self) -> int:
        return self.covered + super().mask_length() - self.columns.shape[1]

    def reset(self) -> None:
        super().reset()
        self.columns, self.covered = self.columns[:, :0], 0

    def crop(self, tokens_to_remove: int) -> None:
        self._check_crop(tokens_to_remove)
        length = self.mask_length()
        if tokens_to_remove > 0:
            # Until 5.18 the length that is to be left, which an empty layer has already; newer versions say that it is refused.
            DynamicLayer().crop(tokens_to_remove)
            left = min(tokens_to_remove, length)
        else:
            left = max(length + tokens_to_remove, 0)
        if left < self.covered:
            kept = {int(number) for number in (self.columns < left).sum(1)}
            if len(kept) > 1:
                raise ValueError(
                    f"crop: the batch rows hold different numbers of the first {left} columns: {sorted(kept)}; layers before "
                    "were cropped already, so this cache cannot be continued"
                )
            self.columns, self.covered = self.columns[:, : kept.pop()], left
        entries = self.columns.shape[1] + left - self.covered
        self.keys, self.values = self.keys[:, :, :entries], self.values[:, :, :entries]
        self.rope_deltas = tuple(entry for entry in self.rope_deltas if entry[0] < left)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.columns = self.columns.index_select(0, beam_idx.to(self.columns.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.columns = self.columns.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.columns = self.columns[indices, ...]


class CompactedLayer(_Carrying):
    """A cache layer of a cache from all of whose layers the same tokens were `dropped`."""

    @classmethod
    def of(cls, layer: DynamicLayer, dropped: int) -> CompactedLayer:
        """A layer with the tensors of `layer`, from which so many more tokens were `dropped`."""
        return cls.like(layer, dropped=getattr(layer, "dropped", 0) + dropped)


def take_columns(mask: Tensor, columns: Tensor) -> Tensor:
    """``mask[b, …, columns[b]]`` for a mask [B, …, N]."""
    mask, columns = mask.expand(len(columns), *mask.shape[1:]), columns.to(mask.device)
    index = columns.view(len(columns), *[1] * (mask.dim() - 2), -1)
    return mask.gather(-1, index.expand(*mask.shape[:-1], -1))


def take_rows(mask: Tensor, rows: Tensor) -> Tensor:
    """``mask[b, :, rows[b], :]`` for a mask [B, 1 or H, T, N]."""
    mask, rows = mask.expand(len(rows), *mask.shape[1:]), rows.to(mask.device)
    return mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def mask_of(layer: PrunedLayer, mask: Tensor) -> Tensor:
    """The part of a mask [B, …, N] that the layer needs: its own columns, and all that came later."""
    return torch.cat([take_columns(mask, layer.columns), mask[..., layer.covered :]], dim=-1)


class PrunedMasks:
    """A forward on a cache with pruned layers: the mask that all layers are given fits layer 0, which holds every column."""

    def __init__(self, watch: Any) -> None:
        self._watch = watch
        # What layers that hold the same columns share: (mask, columns, their part of it).
        self._shared: tuple[Any, Any, Any] = (None, None, None)

    def run_layer(self, number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `layers.Around`."""
        if kwargs.get("attention_mask") is not None:
            kwargs = self._cut(number, kwargs)
        elif number == 0 and not torch.compiler.is_dynamo_compiling():  # all layers are given the same
            self._watch.around = None
        return forward(*args, **kwargs)

    @torch.compiler.disable
    def _cut(self, number: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        cache, mask = cache_of(kwargs), kwargs["attention_mask"]
        if cache is None or number >= len(cache.layers) or type(cache.layers[number]) is not PrunedLayer:
            return kwargs
        held = cache.layers[number]
        if self._shared[0] is not mask or self._shared[1] is not held.columns:
            self._shared = (mask, held.columns, mask_of(held, mask))
        return {**kwargs, "attention_mask": self._shared[2]}


def columns_held(layer: Any, past: int, kept: Tensor) -> Tensor:
    """The columns [B, n] that a layer holds once the `kept` tokens [B, L] of a prompt follow `past` columns."""
    if not past:
        return kept
    old = [torch.arange(past, device=kept.device).expand(len(kept), -1)]
    if type(layer) is PrunedLayer:
        old = [layer.columns, old[0][:, layer.covered :]]
    return torch.cat([*old, kept + past], dim=1)


def columns_before(cache: Any) -> int:
    """Columns that masks have for what `cache` holds already."""
    return 0 if cache is None or not cache.layers else cache.layers[0].get_mask_sizes(0)[0]


def cache_of(arguments: dict[str, Any]) -> Any:
    """The cache among the arguments of a model or a layer, whose name is another from transformers 5.24 on."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


class Served:
    """The cache of the forward under way, if its layers hold different columns."""

    def __init__(self) -> None:
        self._first: Any = None

    def begin(self, cache: Any) -> bool:
        """Let `cache` be read by the forward that begins; returns whether its layers hold different columns."""
        layers = getattr(cache, "layers", ())
        if not layers or getattr(layers[0], "served", True):
            _check_plain(layers)
            return False
        self._first = layers[0]
        self._first.served = True
        return True

    def end(self) -> None:
        """After the forward."""
        if self._first is not None:
            self._first.served, self._first = False, None


def _check_plain(layers: Sequence[Any]) -> None:
    """Refuse a cache that somebody made of the keys and values of a pruned one: what they stand for is lost."""
    first: Any = layers[0] if layers else None
    last: Any = layers[-1] if layers else None
    if type(last) is DynamicLayer and type(first) is DynamicLayer and first.is_initialized and last.is_initialized:
        lengths = first.keys.shape[2], last.keys.shape[2]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"past_key_values: expected layers of one length, got {lengths[0]} and {lengths[1]} tokens in the first and the last, as "
                "a pruned prompt leaves them, in a cache that does not say which; copy or pickle the cache itself"
            )


def check_cache(cache: Any) -> None:
    """Raise unless a prompt can be pruned into `cache`."""
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise TypeError(f"past_key_values: expected a transformers Cache, got {type(cache).__name__}")
    if getattr(cache, "offloading", False):
        raise ValueError("past_key_values: an offloaded cache is not supported by accelerate; use a plain DynamicCache")
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    strange = sorted(
        kind.__name__ for kind in kinds - {DynamicLayer, WholeLayer, PrunedLayer, CompactedLayer, None} if kind
    )
    if strange:
        raise ValueError(
            f"past_key_values: accelerate supports a DynamicCache of full attention, got layers of {strange}"
        )

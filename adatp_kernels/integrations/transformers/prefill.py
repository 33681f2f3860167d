"""One forward of a model that reads a video prompt: what happens before and after each decoder layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adatp_kernels.integrations.transformers.cache import (
    CompactedLayer,
    PrunedColumns,
    check_cache,
    physical_length,
    take_columns,
    take_rows,
)
from adatp_kernels.integrations.transformers.report import PhaseClock
from adatp_kernels.integrations.transformers.tap import Seen
from adatp_kernels.layout import VisualLayout
from adatp_kernels.pruner import AdaTPPruner, PruningState


class VideoPrefill:
    """Prunes one prompt while it passes through the decoder.

    Attributes
    ----------
    arguments : dict
        What the model was called with.
    layout : VisualLayout
    relevance : Tensor [num_frames] or None
    features : Tensor [num_frames, d] or None
        Set once the vision tower has run.
    state : PruningState or None
        Set once the first decoder layer begins.
    entered : list of int
        Tokens that entered each layer.
    survivors : list of (int, LongTensor [B, L])
        Per stage, its layer and the tokens that were left after it.
    clock : PhaseClock
    """

    def __init__(
        self, pruner: AdaTPPruner, arguments: dict[str, Any], layout: VisualLayout, relevance: Tensor | None
    ) -> None:
        self.pruner, self.arguments, self.layout, self.relevance = pruner, arguments, layout, relevance
        self.features: Tensor | None = None
        self.state: PruningState | None = None
        self.entered: list[int] = []
        self.survivors: list[tuple[int, Tensor]] = []

    def begin(self, hidden: Tensor, kwargs: dict[str, Any], columns: PrunedColumns) -> None:
        """At the first decoder layer: find the segments and make the plan.

        Parameters
        ----------
        hidden : Tensor [B, T, D]
        kwargs : dict
            The layer's keyword arguments.
        columns : PrunedColumns
            What the layers of the cache hold from earlier prompts.
        """
        self.cache = kwargs.get("past_key_values")
        check_cache(self.cache)
        length = hidden.shape[1]
        self.past = physical_length(self.cache, 0)
        self.padding = self._padding(self.past + length)
        if self.padding is not None and self.pruner.config.compact_cache:
            raise ValueError("compact_cache: True is not supported for a prompt with padding; use compact_cache=False")
        self.columns = columns
        self.new_columns: dict[int, Tensor] = {}
        self.rotary: tuple[Tensor, ...] = tuple(kwargs["position_embeddings"])
        self.clock = PhaseClock(hidden.device)
        self.state = self.pruner.begin(
            self.layout, length, features=self.features, relevance=self.relevance, device=hidden.device
        )

    def before_layer(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's keyword arguments, cut down to the tokens that are left."""
        assert self.state is not None
        self.entered.append(hidden.shape[1])
        if not self.survivors and number not in self.columns.layers:
            return kwargs
        held = self.columns.extended(number, self.past, self.state.kept)
        self.new_columns[number] = held
        mask = kwargs.get("attention_mask")
        if mask is not None:
            mask = take_columns(take_rows(mask, self.state.kept) if mask.dim() == 4 else mask, held)
        # Position ids are left out: what the layer needs of them is in cos and sin, and with gaps in
        # them flash attention would take the prompt for several packed ones.
        return {**kwargs, "attention_mask": mask, "position_embeddings": self.rotary, "position_ids": None}

    def after_layer(self, number: int, hidden: Tensor, seen: Seen) -> Tensor:
        """Prune after a layer that scored; returns the hidden states that go on."""
        assert self.state is not None
        older = seen.key.shape[2] - hidden.shape[1]
        layers = self._compacted_layers(number)
        # Of a cache, only this prompt's tokens are pruned; what earlier turns left stays.
        entries = [entry for layer in layers for entry in (layer.keys, layer.values)]
        travelling = [hidden, *self.rotary, *(entry[:, :, older:] for entry in entries)]
        key_mask = None
        if self.padding is not None:
            key_mask = (
                take_columns(self.padding, self.new_columns[number]) if number in self.new_columns else self.padding
            )
        self.clock.start()
        self.state, moved = self.pruner(
            self.state,
            seen.query,
            seen.key,
            travelling,
            dims=[1] * (1 + len(self.rotary)) + [2] * len(entries),
            scale=seen.scale,
            lse=seen.lse,
            key_mask=key_mask,
            on_phase=self.clock.phase_done,
        )
        self.survivors.append((number, self.state.kept))
        hidden, self.rotary = moved[0], moved[1 : 1 + len(self.rotary)]
        compacted = iter(moved[1 + len(self.rotary) :])
        for layer in layers:
            keys, values = next(compacted), next(compacted)
            layer.keys = torch.cat([layer.keys[:, :, :older], keys], dim=2) if older else keys
            layer.values = torch.cat([layer.values[:, :, :older], values], dim=2) if older else values
        return hidden

    def finish(self) -> None:
        """After the last layer: what later forwards need to know of this cache."""
        assert self.state is not None
        if self.cache is None:
            return
        length = self.entered[0]
        if self.pruner.config.compact_cache:
            for layer in self._compacted_layers(len(self.cache.layers) - 1):
                layer.dropped += length - self.state.length
        else:
            self.columns.layers.update(self.new_columns)
            self.columns.covered = self.past + length

    def _compacted_layers(self, last: int) -> list[CompactedLayer]:
        """The cache layers up to `last`, made compactable, if the cache is to be compacted."""
        if self.cache is None or not self.pruner.config.compact_cache:
            return []
        self.cache.layers[: last + 1] = [CompactedLayer.of(layer) for layer in self.cache.layers[: last + 1]]
        return self.cache.layers[: last + 1]

    def _padding(self, columns: int) -> Tensor | None:
        """The padding mask [B, N] as booleans; None if nothing is padded."""
        padding = self.arguments.get("attention_mask")
        if padding is None:
            return None
        if not isinstance(padding, Tensor) or padding.dim() != 2:
            raise ValueError("attention_mask: accelerate supports a padding mask of shape [B, N], not a mask per row")
        padding = padding[:, -columns:].bool()
        # Read once on the host, before the decoder runs: without padding no mask has to travel.
        return None if bool(padding.all()) else padding

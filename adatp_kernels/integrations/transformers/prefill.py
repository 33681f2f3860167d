"""One forward of a model that reads a video prompt: what happens before and after each decoder layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adatp_kernels.integrations.transformers.cache import (
    CompactedLayer,
    PrunedLayer,
    columns_held,
    physical_length,
    take_columns,
    take_rows,
)
from adatp_kernels.integrations.transformers.families.base import Videos
from adatp_kernels.integrations.transformers.report import PhaseClock, PromptRecord
from adatp_kernels.integrations.transformers.tap import Seen
from adatp_kernels.ops.dispatch import last_used
from adatp_kernels.pruner import AdaTPPruner, PruningState
from adatp_kernels.segments import segment_frames


class VideoPrefill:
    """Prunes one prompt while it passes through the decoder.

    Attributes
    ----------
    arguments : dict
        What the model was called with.
    videos : Videos
    """

    def __init__(self, pruner: AdaTPPruner, arguments: dict[str, Any], videos: Videos) -> None:
        self.pruner, self.arguments, self.videos, self.layout = pruner, arguments, videos, videos.layout
        self.state: PruningState | None = None
        self.entered: list[int] = []
        self.survivors: list[tuple[int, Tensor]] = []
        padding = arguments.get("attention_mask")
        if padding is not None and (not isinstance(padding, Tensor) or padding.dim() != 2):
            raise ValueError("attention_mask: accelerate supports a padding mask of shape [B, N], not a mask per row")
        # Read once on the host, before the decoder runs: without padding no mask has to travel.
        self.padding = None if padding is None or bool(padding.all()) else padding.bool()
        if self.padding is not None and not bool(self.padding[:, -1].all()):
            raise ValueError("attention_mask: accelerate supports padding on the left; the last token is padding")
        if self.padding is not None and not bool((self.padding == self.padding[0]).all()):
            raise ValueError(
                "attention_mask: accelerate prunes copies of one prompt together, got rows with different padding"
            )
        if self.padding is not None and pruner.config.compact_cache:
            raise ValueError("compact_cache: True is not supported for a prompt with padding; use compact_cache=False")

    @property
    def next_layer(self) -> int | None:
        """The layer whose query and key are needed next."""
        return None if self.state is None else self.state.next_layer

    def frame_means(self, hidden: Tensor) -> Tensor:
        """The mean of every frame's visual features as the decoder gets them, of the first copy: [num_frames, D] in float32."""
        features = hidden[0, self.layout.index.to(hidden.device)].float()
        sizes = self.layout.frame.bincount().tolist()
        # Not an index_add, which on a GPU adds in any order.
        if len(set(sizes)) == 1:
            return features.view(len(sizes), sizes[0], -1).mean(1)
        return torch.stack([frame.mean(0) for frame in features.split(sizes)])

    def begin(self, hidden: Tensor, kwargs: dict[str, Any], features: Tensor, relevance: Tensor | None) -> None:
        """At the first decoder layer: segments and plan.

        Parameters
        ----------
        hidden, kwargs
            The layer's input [B, T, D] and keyword arguments.
        features : Tensor [num_frames, d]
        relevance : Tensor [num_frames], optional
        """
        if len(hidden) > 1 and bool((hidden - hidden[:1]).norm() > 1e-2 * hidden.norm()):
            raise ValueError(
                f"input_ids: accelerate prunes one prompt at a time so far, got a batch of {len(hidden)} with different videos; copies "
                "of one prompt, as num_beams and num_return_sequences make them, are supported"
            )
        self.cache = kwargs.get("past_key_values")
        self.past = physical_length(self.cache, 0)
        if self.padding is not None:
            self.padding = self.padding[:, -hidden.shape[1] - self.past :]
        self.rotary: tuple[Tensor, ...] = tuple(kwargs["position_embeddings"])
        self.clock = PhaseClock(hidden.device)
        self.state = self.pruner.begin(
            self.layout,
            hidden.shape[1],
            segments=self._segments(features),
            relevance=relevance,
            batch_size=hidden.shape[0],
            device=hidden.device,
        )
        self.columns: dict[int, Tensor] = {}  # of every layer that holds a part: which columns
        self._of_layers_alike: tuple[Any, ...] = ()

    def _segments(self, features: Tensor) -> Tensor:
        """Segment of each frame; none goes from one video into the next."""
        segments: list[Tensor] = []
        for frames in features.split(self.videos.frames):
            own = segment_frames(frames, self.pruner.config.segment_threshold)
            segments.append(own + 1 + segments[-1][-1] if segments else own)
        return torch.cat(segments)

    def before_layer(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's keyword arguments, cut down to the tokens that are left."""
        assert self.state is not None
        self.entered.append(hidden.shape[1])
        layer = self.cache.layers[number] if self.cache is not None and number < len(self.cache.layers) else None
        if not self.survivors and not isinstance(layer, PrunedLayer):
            return kwargs
        # Layers between two stages that held the same before hold, and mask, the same now.
        before = layer.columns if isinstance(layer, PrunedLayer) else None
        mask = kwargs.get("attention_mask")
        alike = (len(self.survivors), before, mask)
        if not self._of_layers_alike or any(a is not b for a, b in zip(alike, self._of_layers_alike[0], strict=True)):
            held = columns_held(layer, self.past, self.state.kept)
            if mask is not None:
                mask = take_columns(take_rows(mask, self.state.kept) if mask.dim() == 4 else mask, held)
            self._of_layers_alike = (alike, held, mask)
        _, self.columns[number], mask = self._of_layers_alike
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
        key_mask = self.padding
        if key_mask is not None and number in self.columns:
            key_mask = take_columns(key_mask, self.columns[number])
        self.clock.start()
        self.state, moved = self.pruner(
            self.state,
            seen.query,
            seen.key,
            travelling,
            # M-RoPE may come with a dimension for time, height and width before the batch's.
            dims=[1, *((1, 2) if part.dim() == 4 else 1 for part in self.rotary), *[2] * len(entries)],
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

    def finish(self) -> PromptRecord:
        """After the last layer: tell the cache what it holds, and what is worth remembering of the prompt.

        Raises
        ------
        RuntimeError
            If a stage never came by, because the model ran without the hooks or its attention was not seen.
        """
        if self.state is None or self.state.next_layer is not None:
            missed = (
                "the decoder's layers were"
                if self.state is None
                else f"the attention of layer {self.state.next_layer} was"
            )
            raise RuntimeError(
                f"model: {missed} not seen by accelerate, so the prompt was not pruned as planned. A compiled model and "
                "attention modules that do not use transformers' attention functions are not supported"
            )
        length = self.entered[0]
        if self.cache is not None and self.pruner.config.compact_cache:
            for layer in self._compacted_layers(len(self.cache.layers) - 1):
                layer.dropped += length - self.state.length
        elif self.cache is not None:
            for number, columns in self.columns.items():
                self.cache.layers[number] = PrunedLayer.of(self.cache.layers[number], columns, self.past + length)
        return PromptRecord(
            plan=self.state.plan,
            layout=self.layout,
            segments=tuple(self.state.segments_per_frame.tolist()),
            salient=self.state.salient,
            entered=tuple(self.entered),
            survivors=tuple(self.survivors),
            clock=self.clock,
            backends=last_used(),
        )

    def _compacted_layers(self, last: int) -> list[CompactedLayer]:
        """The cache layers up to `last`, made compactable, if the cache is to be compacted."""
        if self.cache is None or not self.pruner.config.compact_cache:
            return []
        self.cache.layers[: last + 1] = [CompactedLayer.of(layer) for layer in self.cache.layers[: last + 1]]
        return self.cache.layers[: last + 1]

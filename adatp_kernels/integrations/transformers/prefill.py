"""One forward of a model that reads a video prompt: what happens before and after each decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from adatp_kernels.integrations.transformers.cache import (
    CompactedLayer,
    PrunedLayer,
    WholeLayer,
    cache_of,
    columns_before,
    columns_held,
    take_columns,
    take_rows,
)
from adatp_kernels.integrations.transformers.causal import check_causal_mask
from adatp_kernels.integrations.transformers.packed import check_not_packed, text_positions
from adatp_kernels.integrations.transformers.report import PhaseClock, PromptRecord
from adatp_kernels.integrations.transformers.rotary import OtherRotaries, dims_of, parts_of
from adatp_kernels.integrations.transformers.support import check_layer_arguments
from adatp_kernels.integrations.transformers.tap import Seen
from adatp_kernels.integrations.transformers.visuals import Visuals
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import gather
from adatp_kernels.ops.dispatch import last_used
from adatp_kernels.pruner import AdaTPPruner
from adatp_kernels.segments import segment_frames
from adatp_kernels.state import PruningState


class _Alike(NamedTuple):
    """What layers share that are left with the same tokens, on top of the same columns of earlier turns."""

    kept: Tensor  # [B, L]
    before: Tensor | None  # the columns they held before
    whole: Tensor | None  # the mask they are given
    held: Tensor  # the columns they hold now, [B, n]
    replaced: dict[str, Any]  # of their keyword arguments


class VideoPrefill:
    """Prunes a batch of prompts while it passes through the decoder.

    Attributes
    ----------
    arguments : dict
        What the model was called with.
    visuals : list of Visuals
        Of each row.
    next_layer : int, optional
        The layer whose query and key are needed next.
    """

    def __init__(self, pruner: AdaTPPruner, arguments: dict[str, Any], visuals: list[Visuals]) -> None:
        self.pruner, self.arguments, self.visuals = pruner, arguments, visuals
        self.state: PruningState | None = None
        self.next_layer: int | None = None
        self.entered: list[int] = []
        self.survivors: list[tuple[int, Tensor]] = []
        given = arguments.get("attention_mask")
        if given is not None and (not isinstance(given, Tensor) or given.dim() != 2):
            raise ValueError("attention_mask: accelerate supports a padding mask of shape [B, N], not a mask per row")
        positions, length = text_positions(arguments), arguments["input_ids"].shape[1]
        # Of each row's prompt: how many tokens come before it, the places of what stays and is no text, and how much of
        # what else stays is masked.
        self.padding, self.whole, self.masked = [0] * len(visuals), [row.whole for row in visuals], [0] * len(visuals)
        self.key_mask: Tensor | None = None
        # Asked of mask and positions together, so that the host waits once: without padding no mask has to travel.
        usual = None if given is None else given.all()
        if positions is not None:
            usual = positions.count_up() if usual is None else usual & positions.count_up().to(usual.device)
        if usual is not None and not usual:
            real = None
            if given is not None:
                mask = given.cpu().bool()
                real = mask[:, -length:]
                if not mask.all():
                    self.key_mask = given.bool()
                    self._read_mask(real)
            if positions is not None:
                check_not_packed(positions, real, [torch.cat((row.layout.index, row.whole)) for row in visuals])
        for number, row in enumerate(visuals):
            if row.end == length and pruner.config.score == "attention":
                raise ValueError(
                    f"input_ids: expected text behind the last visual token of row {number}, which chooses what is kept, got none"
                )

    def _read_mask(self, real: Tensor) -> None:
        """What a mask [B, N] of the prompts, on the host, leaves of them."""
        if not real[:, -1].all():
            raise ValueError("attention_mask: accelerate supports padding on the left; the last token is padding")
        self.padding = real.long().argmax(1).tolist()
        for number, (row, own) in enumerate(zip(self.visuals, real, strict=True)):
            self.whole[number] = row.whole[own[row.whole]]
            of_video = len(row.layout) - int(own[row.layout.index].sum())
            self.masked[number] = len(own) - int(own.sum()) - of_video - self.padding[number]

    def frame_means(self, hidden: Tensor) -> list[Tensor]:
        """The mean of every frame's visual features as the decoder gets them: for each row [num_frames, D] in float32."""
        means = []
        for tokens, visuals in zip(hidden, self.visuals, strict=True):
            features = tokens[visuals.layout.index.to(hidden.device)].float()
            sizes = visuals.layout.frame.bincount().tolist()
            # Not an index_add, which on a GPU adds in any order.
            if len(set(sizes)) == 1:
                means.append(features.view(len(sizes), sizes[0], -1).mean(1))
            else:
                means.append(torch.stack([frame.mean(0) for frame in features.split(sizes)]))
        return means

    def begin(
        self, hidden: Tensor, kwargs: dict[str, Any], features: list[Tensor], relevance: list[Tensor | None]
    ) -> None:
        """At the first decoder layer: segments and plan.

        Parameters
        ----------
        hidden, kwargs
            The layer's input [B, T, D] and keyword arguments.
        features : list of Tensor [num_frames, d]
            Of each row.
        relevance : list of Tensor [num_frames] or None
            Of each row.
        """
        self.cache: Any = cache_of(kwargs)
        self.past = columns_before(self.cache)
        layers = () if self.cache is None else self.cache.layers
        self._pruned_before = any([type(layer) is PrunedLayer for layer in layers])
        self._compacts = self.cache is not None and self.pruner.config.compact_cache
        if self.key_mask is not None:
            self.key_mask = self.key_mask[:, -hidden.shape[1] - self.past :]
        check_layer_arguments(kwargs, hidden.shape[1])
        self._given: Any = kwargs["position_embeddings"]  # to the first layer, and as a rule to all
        rotary = parts_of(self._given)
        self.rotary: Sequence[Tensor] = rotary
        self._other_rotaries = OtherRotaries()
        self._dims = [1, *dims_of(rotary)]
        self._device: torch.device | None = None  # where state, cos and sin were brought together
        self.clock = PhaseClock(hidden.device)
        layouts = [row.layout for row in self.visuals]
        check_causal_mask(kwargs.get("attention_mask"), layouts, self.past)
        segments = [self._segments(row, frames) for row, frames in zip(self.visuals, features, strict=True)]
        length, device = hidden.shape[1], hidden.device
        if _alike(layouts, segments, relevance, self.padding, self.whole):
            self.state = self.pruner.begin(
                layouts[0],
                length,
                segments=segments[0],
                relevance=relevance[0],
                padding=self.padding[0],
                images=self.whole[0],
                batch_size=len(hidden),
                device=device,
            )
        else:
            self.state = self.pruner.begin(
                layouts,
                length,
                segments=segments,
                relevance=relevance,
                padding=self.padding,
                images=self.whole,
                device=device,
            )
        self.next_layer = self.state.next_layer
        self.columns: dict[int, Tensor] = {}  # of every layer that holds a part: which columns
        self._of_layers_alike: _Alike | None = None

    def _segments(self, visuals: Visuals, features: Tensor) -> Tensor:
        """Segment of each frame, on the host; none goes from one video or image into the next."""
        threshold = self.pruner.config.segment_threshold
        if len(visuals.frames) == 1:
            return segment_frames(features, threshold).cpu()
        segments: list[Tensor] = []
        for frames in features.split(visuals.frames):
            own = segment_frames(frames, threshold).cpu()
            segments.append(own + 1 + segments[-1][-1] if segments else own)
        return torch.cat(segments)

    def before_layer(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's keyword arguments, cut down to the tokens that are left."""
        self.entered.append(hidden.shape[1])
        layer = self.cache.layers[number] if self._pruned_before and number < len(self.cache.layers) else None
        before = layer.columns if type(layer) is PrunedLayer else None
        if before is None and not self.survivors:
            return kwargs
        # Layers between two stages that held the same before hold, and mask, the same now.
        assert self.state is not None
        kept, mask, alike = self.state.kept, kwargs.get("attention_mask"), self._of_layers_alike
        if alike is None or alike.kept is not kept or alike.before is not before or alike.whole is not mask:
            held, part = columns_held(layer, self.past, kept), mask
            if mask is not None:
                part = take_columns(take_rows(mask, kept) if mask.dim() == 4 else mask, held)
            # Position ids are left out: what the layer needs of them is in cos and sin, and with gaps in
            # them flash attention would take the prompt for several packed ones.
            rotary = self.rotary if self._given is not None else None
            replaced = {"attention_mask": part, "position_embeddings": rotary, "position_ids": None}
            self._of_layers_alike = alike = _Alike(kept, before, mask, held, replaced)
        self.columns[number] = alike.held
        given = kwargs["position_embeddings"]
        if given is not self._given:
            return kwargs | alike.replaced | {"position_embeddings": self._other_rotaries.left(given, kept)}
        return kwargs | alike.replaced

    def after_layer(self, number: int, hidden: Tensor, seen: Seen) -> Tensor:
        """Prune after a layer that scored; returns the hidden states that go on."""
        assert self.state is not None
        state, device = self.state, hidden.device
        if device != self._device:  # a model may be spread out
            state, self.rotary = state.to(device), tuple(part.to(device) for part in self.rotary)
            self._device = device
        travelling, dims, length = [hidden, *self.rotary], self._dims, hidden.shape[1]
        if self._compacts:
            # Of a cache, only this prompt's tokens are pruned; what earlier turns left stays.
            layers = self.cache.layers[: number + 1]
            near = [entry for layer in layers if layer.keys.device == device for entry in (layer.keys, layer.values)]
            travelling += [entry[:, :, entry.shape[2] - length :] for entry in near]
            dims = dims + [2] * len(near)
        key_mask = self.key_mask
        if key_mask is not None:
            if number in self.columns:
                key_mask = take_columns(key_mask, self.columns[number])
            key_mask = key_mask.to(device)
        clock = self.clock
        clock.mark(None)
        following, moved = self.pruner.forward(
            state, seen.query, seen.key, travelling, dims=dims, scale=seen.scale, lse=seen.lse, key_mask=key_mask,
            on_phase=clock.mark,
        )  # fmt: skip
        self.state, self.next_layer = following, following.next_layer
        self.survivors.append((number, following.kept))
        if self._compacts:
            _compact(layers, state.kept, following.kept, length, moved[len(self._dims) :])
            moved = moved[: len(self._dims)]
        hidden, *self.rotary = moved
        return hidden

    def finish(self) -> PromptRecord:
        """After the last layer: tell the cache what it holds, and what is worth remembering of the prompt.

        Raises
        ------
        RuntimeError
            If a stage never came by, because its layers or its attention were not seen.
        """
        if self.state is None or self.state.next_layer is not None:
            missed = (
                "the decoder's layers were"
                if self.state is None
                else f"the attention of layer {self.state.next_layer} was"
            )
            raise RuntimeError(
                f"model: {missed} not seen by accelerate, so the prompt was not pruned as planned. A model that was compiled "
                "before it was accelerated, and attention modules that do not use transformers' attention functions, are not supported"
            )
        if self.cache is not None:
            self._tell_cache(self.entered[0])
        return PromptRecord(
            state=self.state,
            visuals=tuple(self.visuals),
            masked=tuple(self.masked),
            entered=tuple(self.entered),
            survivors=tuple(self.survivors),
            clock=self.clock,
            backends=last_used(),
        )

    def give_up(self) -> None:
        """The forward was interrupted: if tokens were dropped already, nobody can tell what the cache holds."""
        if self.survivors and self.cache is not None:
            layers = self.cache.layers
            if type(layers[0]) is DynamicLayer:
                layers[0] = WholeLayer.like(layers[0])
            layers[0].interrupted = True

    def _tell_cache(self, length: int) -> None:
        """Let every layer of the cache know which of the prompt's `length` columns it holds."""
        assert self.state is not None
        layers, kept = self.cache.layers, self.state.kept
        if self._compacts:
            if self.key_mask is None and not any([type(layer) is PrunedLayer for layer in layers]):
                layers[:] = [CompactedLayer.of(layer, length - self.state.length) for layer in layers]
                return
            # With padding the rows' masks differ, so every layer has to know its columns.
            self.columns = {number: columns_held(layer, self.past, kept) for number, layer in enumerate(layers)}
        for number, layer in enumerate(layers):
            held = self.columns.get(number)
            if held is not None:
                layers[number] = PrunedLayer.of(layer, held, self.past + length)
            elif self.columns and type(layer) is DynamicLayer:
                layers[number] = WholeLayer.like(layer)
        if self.columns:
            layers[0].served = False  # but to accelerated models


def _compact(layers: list[Any], kept: Tensor, left: Tensor, length: int, moved: Sequence[Tensor]) -> None:
    """Drop from cache `layers` what a stage dropped: of the `length` newest tokens, `kept`, some are `left`.

    Keys and values of those layers that are on the stage's device were `moved` with it.
    """
    parts = iter(moved)
    for layer in layers:
        older = layer.keys.shape[2] - length
        if layer.keys.device == left.device:
            both: Any = (next(parts), next(parts))
        else:
            places = torch.searchsorted(kept, left).to(layer.keys.device)
            both = gather(places, layer.keys[:, :, older:], layer.values[:, :, older:], dims=2)
        layer.keys, layer.values = (
            torch.cat([entry[:, :, :older], part], dim=2) if older else part
            for entry, part in zip((layer.keys, layer.values), both, strict=True)
        )


def _alike(layouts: list[VisualLayout], *others: list[Any]) -> bool:
    """Whether all rows have the same layout and the same of everything else: copies of one prompt."""

    def same(a: Any, b: Any) -> bool:
        return a is b or (a.equal(b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b)

    if len(layouts) == 1:
        return True
    first = layouts[0]
    return all(
        same(row.index, first.index) and same(row.frame, first.frame) and same(row.position, first.position)
        for row in layouts
    ) and all(same(value, values[0]) for values in others for value in values)

"""LLaVA-OneVision: every frame is a pooled square of cells; one newline token ends the video and is text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.integrations.transformers.families.base import Family, frames_of_equal_size, squares


class LlavaOnevision(Family):
    """The family of `LlavaOnevisionForConditionalGeneration` (and of the bare `LlavaOnevisionModel`)."""

    model_type = "llava_onevision"
    shows_frames = True
    after = 1

    def vision_tower(self, model: Any) -> nn.Module:
        return self.base(model).vision_tower

    def num_video_tokens(self, model: Any, num_frames: int) -> int:
        """How many video tokens the prompt of a video of `num_frames` frames holds."""
        return num_frames * self._cells(model) + self.after

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
        pixels, cells = arguments.get(self.pixels), self._cells(model)
        if pixels is None:
            return frames_of_equal_size([count - self.after for count in self.encoded_tokens(arguments)], cells)
        if pixels.dim() != 5:
            raise ValueError(f"pixel_values_videos: expected shape [videos, frames, 3, H, W], got {list(pixels.shape)}")
        return [[cells] * pixels.shape[1]] * len(pixels)

    def frame_grids(
        self, model: Any, arguments: dict[str, Any], sizes: Sequence[Sequence[int]]
    ) -> list[tuple[int, int] | None]:
        return squares(sizes)

    def remember(
        self, model: Any, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> dict[str, Any]:
        pixels = args[0] if args else kwargs["pixel_values"]
        return {"frames": pixels, "features": self._features(model, arguments, output)}

    def _features(self, model: Any, arguments: dict[str, Any], output: Any) -> Tensor:
        if output.pooler_output is not None:
            return output.pooler_output
        # A tower without a pooling head: the mean of the features that the decoder is fed from.
        chosen = arguments.get("vision_feature_layer")
        chosen = model.config.vision_feature_layer if chosen is None else chosen
        strategy = arguments.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
        layers = [chosen] if isinstance(chosen, int) else chosen
        first = 1 if strategy == "default" else 0  # "default" leaves out a class token
        return torch.cat([output.hidden_states[layer][:, first:].mean(1) for layer in layers], dim=-1)

    def _cells(self, model: Any) -> int:
        vision = model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)  # pooling halves the grid of patches, rounding up
        return side * side

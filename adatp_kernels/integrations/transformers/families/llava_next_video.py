"""LLaVA-NeXT-Video: every frame is a square of cells, pooled by a stride; nothing stands between frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adatp_kernels.integrations.transformers.families.base import Family, frames_of_equal_size, squares


class LlavaNextVideo(Family):
    """The family of `LlavaNextVideoForConditionalGeneration`."""

    model_type = "llava_next_video"

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size // model.config.spatial_pool_stride
        pixels = arguments.get(self.pixels)
        if pixels is None:
            return frames_of_equal_size(self.encoded_tokens(arguments), side * side)
        return [[side * side] * pixels.shape[1]] * len(pixels)

    def frame_grids(
        self, model: Any, arguments: dict[str, Any], sizes: Sequence[Sequence[int]]
    ) -> list[tuple[int, int] | None]:
        return squares(sizes)

"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a frame is one temporal patch; its size is in ``video_grid_thw``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from torch import Tensor, nn

from adatp_kernels.integrations.transformers.families.base import Family, frames_of_grids, merged_grids


class Qwen2VL(Family):
    """The family of `Qwen2VLForConditionalGeneration`."""

    model_type = "qwen2_vl"
    needs = ("video_grid_thw",)

    def vision_tower(self, model: Any) -> nn.Module:
        return self.base(model).visual

    def remember(
        self, model: Any, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> dict[str, Any]:
        return {"video_grid_thw": kwargs["grid_thw"]}

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
        grids = arguments["video_grid_thw"]
        return frames_of_grids(grids, [model.config.vision_config.spatial_merge_size**2] * len(grids))

    def frame_grids(
        self, model: Any, arguments: dict[str, Any], sizes: Sequence[Sequence[int]]
    ) -> list[tuple[int, int] | None] | None:
        return self._merged(model, arguments.get("video_grid_thw"))

    def image_grids(self, model: Any, arguments: dict[str, Any]) -> list[tuple[int, int] | None] | None:
        return self._merged(model, arguments.get("image_grid_thw"))

    def pictures_per_frame(self, model: Any) -> int:
        return model.config.vision_config.temporal_patch_size

    def _merged(self, model: Any, grids: Tensor | None) -> list[tuple[int, int] | None] | None:
        return merged_grids(grids, repeat(model.config.vision_config.spatial_merge_size))


class Qwen25VL(Qwen2VL):
    """The family of `Qwen2_5_VLForConditionalGeneration`."""

    model_type = "qwen2_5_vl"


class Qwen3VL(Qwen2VL):
    """The family of `Qwen3VLForConditionalGeneration`: timestamps, which are text, stand between the frames.

    DeepStack adds visual features to the hidden states after each of the first layers; tokens may go only after that.
    """

    model_type = "qwen3_vl"

    def first_stage(self, model: Any) -> int:
        return len(model.config.vision_config.deepstack_visual_indexes)

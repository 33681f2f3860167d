"""VideoLLaMA3: every frame is a grid of merged patches; its size is in ``video_grid_thw`` and ``video_merge_sizes``."""

from __future__ import annotations

from typing import Any

from torch import nn

from adatp_kernels.integrations.transformers.families.base import Family, frames_of_grids


class VideoLlama3(Family):
    """The family of `VideoLlama3ForConditionalGeneration`."""

    model_type = "video_llama_3"
    needs = ("video_grid_thw", "video_merge_sizes")

    def vision_tower(self, model: Any) -> nn.Module:
        return self.base(model).vision_model

    def remember(
        self, model: Any, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> dict[str, Any]:
        return {"video_grid_thw": kwargs["grid_thw"], "video_merge_sizes": kwargs["merge_sizes"]}

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
        merged = [size**2 for size in arguments["video_merge_sizes"].tolist()]
        return frames_of_grids(arguments["video_grid_thw"], merged)

"""VideoLLaMA3: a frame is a grid of merged patches, of which its processor may leave out those that did not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.integrations.transformers.families.base import Family, frames_of_grids, merged_grids


class VideoLlama3(Family):
    """The family of `VideoLlama3ForConditionalGeneration`.

    A frame's size is in ``video_grid_thw`` and ``video_merge_sizes``; which of its cells became tokens is in
    ``video_compression_mask``, if there is one.
    """

    model_type = "video_llama_3"
    needs = ("video_grid_thw", "video_merge_sizes")

    def vision_tower(self, model: Any) -> nn.Module:
        return self.base(model).vision_model

    def remember(
        self, model: Any, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> dict[str, Any]:
        return {"video_grid_thw": kwargs["grid_thw"], "video_merge_sizes": kwargs["merge_sizes"]}

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
        kept = self._kept(arguments)
        return self._grids(arguments) if kept is None else [frames.sum(1).tolist() for frames in kept]

    def frame_cells(self, model: Any, arguments: dict[str, Any]) -> list[Tensor] | None:
        kept = self._kept(arguments)
        return None if kept is None else [frames.nonzero()[:, 1] for frames in kept]

    def frame_grids(
        self, model: Any, arguments: dict[str, Any], sizes: Sequence[Sequence[int]]
    ) -> list[tuple[int, int] | None] | None:
        return _merged(arguments, "video")

    def image_grids(self, model: Any, arguments: dict[str, Any]) -> list[tuple[int, int] | None] | None:
        return _merged(arguments, "image")

    def encoded_tokens(self, arguments: dict[str, Any]) -> list[int]:
        whole, mask = super().encoded_tokens(arguments), _mask(arguments)
        if mask is None:
            return whole
        if sum(whole) != len(mask):
            raise ValueError(
                f"mm_encoder_outputs: expected the features of all {len(mask)} cells of video_compression_mask, got {sum(whole)}"
            )
        return [int(part.sum()) for part in mask.split(whole)]

    def _grids(self, arguments: dict[str, Any]) -> list[list[int]]:
        merged = [size**2 for size in arguments["video_merge_sizes"].tolist()]
        return frames_of_grids(arguments["video_grid_thw"], merged)

    def _kept(self, arguments: dict[str, Any]) -> list[Tensor] | None:
        """Of each video, which cells became tokens: [frames, cells] of bool. None if all did."""
        mask = _mask(arguments)
        if mask is None:
            return None
        whole = self._grids(arguments)
        sums = [*map(sum, whole)]
        if len(mask) != sum(sums):
            raise ValueError(
                f"video_compression_mask: expected an entry for each of the {sum(sums)} cells of video_grid_thw, got {len(mask)}"
            )
        videos = [part.view(len(sizes), -1) for part, sizes in zip(mask.split(sums), whole, strict=True)]
        for video, frames in enumerate(videos):
            if not bool(frames.any(1).all()):
                frame = int(frames.any(1).long().argmin())
                raise ValueError(
                    f"video_compression_mask: expected at least one cell of every frame, as the processor leaves them, got none "
                    f"of frame {frame} of video {video}"
                )
        return videos


def _merged(arguments: dict[str, Any], what: str) -> list[tuple[int, int] | None] | None:
    grids, merge = arguments.get(f"{what}_grid_thw"), arguments.get(f"{what}_merge_sizes")
    return None if merge is None else merged_grids(grids, merge.tolist())


def _mask(arguments: dict[str, Any]) -> Tensor | None:
    """The compression mask on the host; None if nothing was left out."""
    mask = arguments.get("video_compression_mask")
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
        what = f"{mask.dtype} of shape {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"video_compression_mask: expected a bool tensor of shape [cells], got {what}")
    mask = mask.cpu()
    return None if bool(mask.all()) else mask

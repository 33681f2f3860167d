"""What the harness feeds a model: how many prompts have a video, of how many frames, and which of those repeat their neighbour."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.methods import MethodWatch


@contextmanager
def watch(model: Any) -> Iterator[Fed]:
    """Count what comes to ``model.generate`` within the block."""
    fed = Fed(model)
    method = MethodWatch(model, "generate", fed.generate)
    try:
        yield fed
    finally:
        method.remove()


class Fed:
    """Counts prompts, frames, and neighbouring frames that are the same picture to the last bit, as the model gets them.

    Frames are compared where they lie, one reduction a clip; the counts wait there until they are asked for.

    Parameters
    ----------
    model : transformers model
        Of a supported family.

    Attributes
    ----------
    prompts, with_video : int
        How many prompts were to be answered, and how many of them had a video.
    frames : list of int
        Frames of each clip. Where videos come as images, all images of a call are one clip.
    """

    def __init__(self, model: Any) -> None:
        model = families.unwrap(model)
        self._pixels = families.find(model).pixels
        self._vision = model.config.vision_config
        self.prompts = self.with_video = 0
        self.frames: list[int] = []
        self._repeats: list[Tensor] = []

    @property
    def repeats(self) -> list[int]:
        """Of each clip, how many frames are the same picture as the one before. On CUDA this waits for the device."""
        return torch.stack(self._repeats).tolist() if self._repeats else []

    def generate(self, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a `generate`, and look at what came to it."""
        answers = generate(*args, **kwargs)  # first, for what is wrong in its arguments it says best itself
        # The harness's models give them by name.
        prompts, pixels = len(kwargs["input_ids"]), kwargs.get(self._pixels)
        self.prompts += prompts
        if pixels is not None:
            self.with_video += prompts  # accelerate refuses a batch of which only some have one
            for clip in self._clips(pixels, kwargs.get("video_grid_thw")):
                self.frames.append(len(clip))
                self._repeats.append((clip[1:] == clip[:-1]).flatten(1).all(1).sum())
        return answers

    def _clips(self, pixels: Tensor, grids: Tensor | None) -> list[Tensor]:
        """The frames of each clip [num_frames, ...]."""
        if grids is None:
            # [videos, frames, channels, height, width], or the frames alone, as images
            return list(pixels) if pixels.dim() == 5 else [pixels]
        # [patches, channels · frames of a patch · height · width], as Qwen-VL's processors make them
        together, area = self._vision.temporal_patch_size, self._vision.patch_size**2
        sizes = [(time, height * width) for time, height, width in grids.tolist()]
        return [
            clip.view(time, cells, -1, together, area).movedim(3, 1).flatten(0, 1)
            for clip, (time, cells) in zip(pixels.split([*map(math.prod, sizes)]), sizes, strict=True)
        ]

    def __str__(self) -> str:
        said = f"{self.with_video} of {self.prompts} prompts had a video"
        if not self.frames:
            return said
        low, middle, high = min(self.frames), statistics.median(self.frames), max(self.frames)
        said += f"; clips: {len(self.frames)}, of {low} / {middle:g} / {high} frames (least / median / most)"
        same, neighbours = sum(self.repeats), sum(self.frames) - len(self.frames)
        if not same:
            return f"{said}, none of which is the same picture as the one before it"
        clips = sum(map(bool, self.repeats))
        return (
            f"{said}. {same} of {neighbours} pairs of neighbouring frames, in {clips} of the clips, are the same picture: the harness "
            "took a frame twice where a clip has too few, or nothing moves there. Whoever drops tokens of such a pair loses nothing, so "
            "pruning looks better here than on frames that differ"
        )

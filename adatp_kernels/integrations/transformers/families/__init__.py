"""What differs between model families: where the decoder is, and which tokens are which cell of which frame.

A family is a small class in a file of its own; `find` picks the one that knows a model.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from adatp_kernels.integrations.transformers.families.llava_onevision import LlavaOnevision
from adatp_kernels.layout import VisualLayout


class Family(Protocol):
    """What `accelerate` needs to know of a model family."""

    model_type: str

    def base(self, model: Any) -> Any:
        """The module whose forward takes token ids and pixels and runs vision tower and decoder."""

    def decoder(self, model: Any) -> Any:
        """The text model: its ``layers`` run one after the other, its ``config`` describes them."""

    def vision_tower(self, model: Any) -> nn.Module:
        """The module that turns the frames into features."""

    def num_video_tokens(self, model: Any, num_frames: int) -> int:
        """How many video tokens the prompt of a video of `num_frames` frames holds."""

    def video(self, model: Any, arguments: dict[str, Any], seen_frames: int) -> VisualLayout | None:
        """Layout of the video in the base module's `arguments`; None without one.

        ``seen_frames`` is how many frames the vision tower saw last, for a video that was encoded before.
        """

    def frame_features(self, model: Any, arguments: dict[str, Any], output: Any) -> Tensor:
        """One feature vector per frame [num_frames, d] from the vision tower's output."""


FAMILIES: tuple[Family, ...] = (LlavaOnevision(),)


def find(model: Any) -> Family:
    """The family that `model` belongs to.

    Raises
    ------
    TypeError
        If `model` is no module.
    ValueError
        If no family knows it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a transformers model, got {type(model).__name__}")
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    raise ValueError(
        f"model: {type(model).__name__} (model_type {model_type!r}) is of no supported family; supported are "
        f"{[family.model_type for family in FAMILIES]}"
    )

"""What differs between model families: where the decoder is, and which tokens are which cell of which frame.

A family is a small class in a file of its own; `find` picks the one that knows a model.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.families.frames_as_images import InternVL, SmolVLM
from adatp_kernels.integrations.transformers.families.llava_next_video import LlavaNextVideo
from adatp_kernels.integrations.transformers.families.llava_onevision import LlavaOnevision
from adatp_kernels.integrations.transformers.families.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL
from adatp_kernels.integrations.transformers.families.video_llama_3 import VideoLlama3

# By model type. Later ones, registered by a user, take the place of earlier ones.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LlavaOnevision(),
        LlavaNextVideo(),
        Qwen2VL(),
        Qwen25VL(),
        Qwen3VL(),
        InternVL(),
        VideoLlama3(),
        SmolVLM(),
    )
}


def register_family(family: Family) -> None:
    """Make `accelerate` know another family of models, or know one differently.

    Parameters
    ----------
    family : Family
        An instance of a subclass; see `Family` for what it may say.

    Raises
    ------
    TypeError
        If it is no `Family`, or has no model type.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family: expected an instance of a subclass of Family, got {type(family).__name__}")
    if not isinstance(getattr(family, "model_type", None), str):
        raise TypeError(f"family: {type(family).__name__} needs a model_type, the one in its models' config")
    FAMILIES[family.model_type] = family


def unwrap(model: Any) -> Any:
    """The transformers model in what PEFT made of it, whose adapters are modules within it; else `model` itself."""
    base: Any = getattr(model, "get_base_model", None)
    return model if base is None else base()


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
    if model_type not in FAMILIES:
        raise ValueError(
            f"model: {type(model).__name__} (model_type {model_type!r}) is of no supported family; supported are "
            f"{list(FAMILIES)}. register_family adds one"
        )
    return FAMILIES[model_type]

"""How relevant each frame is to the question, by a paired image and text tower (``algorithm.md``, step 2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def check_relevance(relevance: Any, question: str | None) -> None:
    """Raise unless `relevance` is None, per-frame scores, or a pair of a SiglipModel and its tokenizer."""
    if relevance is None or isinstance(relevance, Tensor) or _is_numbers(relevance):
        return
    if not isinstance(relevance, tuple) or len(relevance) != 2:
        raise TypeError(
            "relevance: expected None, one score per frame (a tensor or a list of numbers), or a pair (SiglipModel, "
            f"tokenizer); got {type(relevance).__name__}"
        )
    siglip, tokenizer = relevance
    if not all(hasattr(siglip, name) for name in ("get_image_features", "get_text_features")):
        raise TypeError(f"relevance: expected a SiglipModel first, got {type(siglip).__name__}")
    if not callable(tokenizer):
        raise TypeError(f"relevance: expected a tokenizer second, got {type(tokenizer).__name__}")
    if not isinstance(question, str) or not question:
        raise ValueError(
            "question: relevance by a SiglipModel needs the question as a string: accelerate(..., question=...)"
        )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, (int, float)) for item in value)


def is_pair(relevance: Any) -> bool:
    """Whether relevance is to be found out by a model and its tokenizer."""
    return isinstance(relevance, tuple) and not _is_numbers(relevance)


def frame_relevance(relevance: Any, question: str | None, frames: Tensor) -> Tensor | None:
    """Relevance of each frame [num_frames], or None.

    Parameters
    ----------
    relevance, question
        As `check_relevance` let them pass.
    frames : Tensor [num_frames, 3, H, W]
        As the model's vision tower sees them; they are resized where SigLIP wants another size.
    """
    if relevance is None:
        return None
    if is_pair(relevance):
        return siglip_relevance(relevance[0], relevance[1], frames, question or "")
    scores = torch.as_tensor(relevance)
    if list(scores.shape) != [len(frames)]:
        raise ValueError(
            f"relevance: expected one score for each of the video's {len(frames)} frames, got shape {list(scores.shape)}"
        )
    return scores


@torch.no_grad()
def siglip_relevance(siglip: Any, tokenizer: Any, frames: Tensor, question: str) -> Tensor:
    """Cosine of the question's and each frame's SigLIP embedding, [num_frames].

    The frames must be normalised as SigLIP was trained (mean and deviation 0.5), as LLaVA-OneVision's are.
    """
    parameter = next(siglip.parameters())
    size = siglip.config.vision_config.image_size
    pixels = frames.to(parameter.device, parameter.dtype)
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True).to(parameter.dtype)
    # SigLIP was trained on text padded to its full length.
    length = siglip.config.text_config.max_position_embeddings
    text = tokenizer([question], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    images = siglip.get_image_features(pixel_values=pixels).pooler_output
    words = siglip.get_text_features(input_ids=text["input_ids"].to(parameter.device)).pooler_output
    return F.cosine_similarity(images.float(), words.float(), dim=-1)

"""How relevant each frame is to the question, by a paired image and text tower (``algorithm.md``, step 2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adatp_kernels.errors import as_tensor
from adatp_kernels.integrations.transformers.families.base import Family


def check_relevance(relevance: Any, question: str | list[str] | None, family: Family, *, prune_images: bool) -> None:
    """Raise unless `relevance` is None, per-frame scores, or a pair of a SiglipModel and its tokenizer that sees all frames."""
    if relevance is None or isinstance(relevance, Tensor) or _is_numbers(relevance):
        return
    if not isinstance(relevance, tuple) or len(relevance) != 2:
        raise TypeError(
            "relevance: expected None, one score per frame (a tensor or a list of numbers), or a pair (SiglipModel, "
            f"tokenizer); got {type(relevance).__name__}"
        )
    if not family.shows_frames:
        raise ValueError(
            f"relevance: a SiglipModel needs the frames' pixels, which {family.model_type} does not show; give one score per frame"
        )
    if prune_images:
        raise ValueError(
            'relevance: a SiglipModel sees the frames of videos alone; with images="prune" give one score per frame'
        )
    siglip, tokenizer = relevance
    kind = getattr(getattr(siglip, "config", None), "model_type", None)
    if kind != "siglip" or not hasattr(siglip, "get_image_features"):
        raise TypeError(f"relevance: expected a SiglipModel first, got {type(siglip).__name__}")
    if not callable(tokenizer) or hasattr(tokenizer, "tokenizer"):
        raise TypeError(
            f"relevance: expected a tokenizer second, such as a processor's tokenizer, got {type(tokenizer).__name__}"
        )
    questions = question if isinstance(question, list) else [question]
    if not questions or not all(isinstance(text, str) and text for text in questions):
        raise ValueError(
            "question: relevance by a SiglipModel needs the question as a string, or one for each prompt of a batch: "
            "accelerate(..., question=...)"
        )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, (int, float)) for item in value)


def _is_pair(relevance: Any) -> bool:
    """Whether relevance is to be found out by a model and its tokenizer."""
    return isinstance(relevance, tuple) and not _is_numbers(relevance)


def by_row(values: Tensor, frames: list[int]) -> list[Tensor] | None:
    """`values`, one for each frame, shared out to rows with so many `frames`; None if they do not fit.

    Where every prompt comes as several copies in a row, as beams do, the frames of one of them are enough.
    """
    if frames == [len(values)]:
        return [values]
    copies, rest = divmod(sum(frames), len(values))
    if rest or copies < 1 or len(frames) % copies or sum(frames[::copies]) != len(values):
        return None
    return [part for part in values.split(frames[::copies]) for _ in range(copies)]


def frame_relevance(
    relevance: Any, question: str | list[str] | None, frames: list[Tensor], *, copies: int = 1
) -> list[Tensor | None]:
    """Of each row of the batch, the relevance of each frame [num_frames], or None.

    Parameters
    ----------
    relevance, question
        As `check_relevance` let them pass.
    frames : list of Tensor [num_frames, 3, H, W]
        Of each row, as the model's vision tower sees them; they are resized where SigLIP wants another size.
    copies : int
        Rows in a row that are one prompt, as beams are: what is given of it once is for all of them.

    Raises
    ------
    ValueError
        If there is not one score for each frame, or one question for each prompt.
    """
    if relevance is None:
        return [None] * len(frames)
    if _is_pair(relevance):
        texts = question if isinstance(question, list) else [question or ""] * len(frames)
        if len(texts) == len(frames):
            copies = 1
        elif len(texts) * copies != len(frames):
            prompts = len(frames) // copies
            raise ValueError(f"question: expected one, or one for each of the {prompts} prompts, got {len(texts)}")
        siglip, tokenizer = relevance
        return [siglip_relevance(siglip, tokenizer, row, texts[number // copies]) for number, row in enumerate(frames)]
    scores = as_tensor("relevance", relevance)
    counts = [len(row) for row in frames]
    fit = scores.dim() == 1 and len(scores) in (sum(counts), sum(counts[::copies])) and len(scores) > 0
    rows = by_row(scores, counts) if fit else None
    if rows is None:
        of_prompts = " + ".join(str(number) for number in counts[::copies])
        raise ValueError(
            f"relevance: expected one score for each of the video's {of_prompts} frames, got shape {list(scores.shape)}"
        )
    return list(rows)


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

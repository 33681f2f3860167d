"""Answers of the small model to packed questions, and how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.training.batches import Packed, example, pack
from adatp_kernels.demo.training.network import END
from adatp_kernels.demo.training.reading import Reading, packed_attention


def answer_logits(model: Any, packed: Packed, first: Tensor | None = None, last: int | None = None) -> Tensor:
    """Logits of every answer of a packed batch, [answers, vocabulary], through the model's own forward.

    `first` and `last` say in which layers questions see visual tokens, see `Reading`.
    """
    with packed_attention(model):
        hidden = model.model(
            input_ids=packed.ids,
            position_ids=packed.positions,
            pixel_values_videos=packed.pixels,
            use_cache=False,
            reading=Reading(packed.video, packed.question, first, last),
        ).last_hidden_state
    return model.lm_head(hidden[packed.where[:, 0], packed.where[:, 1]])


@torch.no_grad()
def accuracy(
    model: Any,
    split: str,
    clips: range,
    num_shots: int = 8,
    drop_after: int | None = None,
    kinds: Sequence[str] = KINDS,
) -> dict[str, float]:
    """Share of right answers per kind of question, one question of each kind per clip.

    Parameters
    ----------
    model : transformers model
    split : str
    clips : range
        Numbers of the clips in the split.
    num_shots : int
    drop_after : int, optional
        Drop all visual tokens after this layer (−1: before the first).
    kinds : sequence of str
    """
    right: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for start in range(clips.start, clips.stop, 16):
        numbers = range(start, min(start + 16, clips.stop))
        examples = [example(split, number, dict.fromkeys(kinds, 1), num_shots) for number in numbers]
        packed = pack(examples)
        asked = packed.targets != END
        hits = (answer_logits(model, packed, last=drop_after)[asked].argmax(-1) == packed.targets[asked]).tolist()
        for question, hit in zip((question for one in examples for question in one.questions), hits, strict=True):
            right[question.kind].append(hit)
    return {kind: round(float(np.mean(hits)), 4) for kind, hits in right.items() if hits}

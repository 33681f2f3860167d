"""Attention of packed questions: each sees the video and itself, in those layers in which it may see the video at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "adatp_packed_questions"


@dataclass(frozen=True)
class Reading:
    """How a packed batch is read.

    Attributes
    ----------
    video : int
        Length of what precedes the questions: a first token, the visual tokens, a newline token.
    question : int
        Length of each question, padding included.
    first : LongTensor [batch] or None
        The first layer in which the questions of each row see visual tokens; everywhere without it.
    last : int or None
        Visual tokens are dropped after this layer (−1: before the first): no text, the newline included, sees them any
        more.
    """

    video: int
    question: int
    first: Tensor | None = None
    last: int | None = None

    def dropped(self, layer: int) -> bool:
        """Whether no visual token is left in a layer."""
        return self.last is not None and layer > self.last

    def bias(self, layer: int) -> Tensor | None:
        """What is added to the questions' logits for the video in a layer, broadcastable to [batch, 1, 1, video]."""
        visual = torch.zeros(self.video, dtype=torch.bool)
        visual[1:-1] = True
        if self.dropped(layer):
            return torch.zeros(self.video).masked_fill(visual, -torch.inf)
        if self.first is None or layer >= int(self.first.max()):
            return None
        hidden = (layer < self.first)[:, None] & visual
        return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    reading: Reading,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `query` [B, H, T, d], `key` and `value` [B, H_kv, T, d] to [B, T, H, d].

    The same as a mask of shape [T, T] would do, at less than half of the cost: no question computes the logits that
    another question's keys would give.
    """
    groups, layer, split = query.shape[1] // key.shape[1], cast(int, module.layer_idx), reading.video
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    video = _video(query[:, :, :split], key[:, :, :split], value[:, :, :split], scaling, reading.dropped(layer))
    asked = query[:, :, split:] * scaling
    if asked.shape[2] == 0:
        return video.transpose(1, 2), None
    on_video = asked @ key[:, :, :split].mT
    bias = reading.bias(layer)
    if bias is not None:
        on_video = on_video + bias
    blocks = [x.unflatten(2, (-1, reading.question)) for x in (asked, key[:, :, split:], value[:, :, split:])]
    causal = torch.full((reading.question,) * 2, -torch.inf).triu(1)
    on_itself = (blocks[0] @ blocks[1].mT + causal).flatten(2, 3)
    seen = torch.cat([on_video, on_itself], -1).softmax(-1)
    own = (seen[..., split:].unflatten(2, (-1, reading.question)) @ blocks[2]).flatten(2, 3)
    text = seen[..., :split] @ value[:, :, :split] + own
    return torch.cat([video, text], 2).transpose(1, 2), None


def _video(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropped: bool) -> Tensor:
    if not dropped:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    sees = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
    sees[-1, 1:-1] = False
    return F.scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scaling)


AttentionInterface.register(NAME, attend)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Within the context, the model's decoder attends by `attend` and expects a `Reading`."""
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})

"""Which layers let the question see the video: masks per decoder layer, for training and for controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.demo.batches import Packed


@contextmanager
def layer_masks(model: Any, mask_of_layer: Callable[[int], Tensor]) -> Iterator[None]:
    """Within the context, decoder layer ``l`` adds ``mask_of_layer(l)`` to its attention logits, [batch, 1, tokens, tokens]."""

    def replace(layer: int) -> Callable[..., Any]:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask_of_layer(layer)})

    layers = model.model.language_model.layers
    handles = [layer.register_forward_pre_hook(replace(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_from(packed: Packed, first: Tensor) -> Callable[[int], Tensor]:
    """Masks under which the questions of clip ``b`` see its video only from layer ``first[b]`` on.

    Parameters
    ----------
    packed : Packed
    first : LongTensor [clips]
    """
    mask, reading, first = packed.mask(), packed.reading(), first.view(-1, 1, 1, 1)
    last = int(first.max())
    return lambda layer: mask.masked_fill(reading & (layer < first), -torch.inf) if layer < last else mask


def read_until(packed: Packed, last: int) -> Callable[[int], Tensor]:
    """Masks as if all visual tokens were dropped after layer `last` (−1: before the first); they are the rows' own past.

    Text that isn't part of a question, like the newline token after the video, doesn't see them any more, either.
    """
    mask, length = packed.mask(), packed.ids.shape[1]
    visual = torch.zeros(length, dtype=torch.bool)
    visual[1 : 1 + packed.num_visual] = True
    dropped = mask.masked_fill(visual[None, :] & ~visual[:, None], -torch.inf)
    return lambda layer: mask if layer <= last else dropped

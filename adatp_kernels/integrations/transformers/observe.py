"""Text-to-visual attention in the layers of a model from which nothing is pruned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.acceleration import accelerate
from adatp_kernels.integrations.transformers.cache import cache_of
from adatp_kernels.integrations.transformers.tap import AttentionTap
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import column_sums


@dataclass(frozen=True, eq=False)
class Observed:
    """What the text of one prompt attended to.

    Attributes
    ----------
    layout : VisualLayout
        The visual tokens.
    segments : LongTensor [num_frames]
        Segment of each frame.
    layers : tuple of int
    scores : Tensor [len(layers), V]
        The score of each visual token in each of the layers (``algorithm.md``, step 4), float32 on the host.
    """

    layout: VisualLayout
    segments: Tensor
    layers: tuple[int, ...]
    scores: Tensor


def prompts_of(name: str, inputs: Any) -> Iterator[Mapping[str, Any]]:
    """One prompt, or several, one after the other.

    Raises
    ------
    TypeError
        If it is something else.
    """
    several = isinstance(inputs, Iterable) and not isinstance(inputs, Mapping)
    for prompt in inputs if several else [inputs]:
        if not isinstance(prompt, Mapping):
            raise TypeError(
                f"{name}: expected what the model's forward takes, by name, or several of these, got {type(prompt).__name__}"
            )
        yield prompt


@torch.no_grad()
def observe(
    model: nn.Module, inputs: Mapping[str, Any], config: AdaTPConfig, layers: Iterable[int] | None = None
) -> Observed:
    """Run one prompt and record how much of its text's attention each visual token gets.

    Parameters
    ----------
    model : transformers model
        As for `accelerate`; it is left as it was.
    inputs : dict
        What the model's forward takes, of one prompt with a video and no cache.
    config : AdaTPConfig
        How frames become segments, and which rows score.
    layers : iterable of int, optional
        Decoder layers to record; all by default.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the prompt cannot be pruned, or is more than one.
    """
    arguments = dict(inputs)
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        raise ValueError(f"input_ids: expected one prompt, shape [1, N], got {getattr(ids, 'shape', ids)}")
    whole = families.unwrap(model)
    family = families.find(whole)
    decoder = family.decoder(whole)
    if cache_of(arguments) is not None:
        raise ValueError(
            "past_key_values: expected None with a prompt to observe, which is read from its beginning, got a cache"
        )
    if not family.has_video(arguments):
        raise ValueError(f"{family.pixels}: expected with a prompt to observe, got only {', '.join(sorted(arguments))}")
    # What the prompt says about its answer says nothing about its attention.
    arguments |= {"logits_to_keep": 1, "use_cache": False}
    # A pruned forward first: it is short, and knows where the visual tokens are and which frames look alike.
    with accelerate(model, config) as run:
        model(**arguments)
    report = run.report()
    chosen = tuple(range(len(decoder.layers))) if layers is None else tuple(layers)
    start = ids.shape[1] - 1 if config.queries == "last" else report.asking_start
    if report.asking_start == ids.shape[1]:
        raise ValueError("input_ids: expected text behind the last visual token, whose attention is observed, got none")
    mask = arguments.get("attention_mask")
    padding = None if mask is None or bool(mask.all()) else mask.bool()
    scores: dict[int, Tensor] = {}

    def after(number: int, tap: AttentionTap, *_: Any) -> None:
        tap.close()
        seen = tap.take()
        if seen is None:
            return
        own = column_sums(
            seen.query[:, :, start:],
            seen.key,
            query_start=start,
            key_range=report.layout.key_range,
            scale=seen.scale,
            lse=None if seen.lse is None else seen.lse[:, :, start:],
            key_mask=padding,
            query_mask=None if padding is None else padding[:, start:],
        )
        scores[number] = own[0, report.layout.index.to(own.device) - report.layout.key_range[0]].cpu()

    handles = []
    try:
        for number in chosen:
            tap = AttentionTap(decoder.layers[number].self_attn)
            handles += [
                tap.module.register_forward_pre_hook(lambda *_, tap=tap: tap.open()),
                tap.module.register_forward_hook(partial(after, number, tap), always_call=True),
            ]
        model(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    return Observed(
        report.layout,
        torch.tensor(report.segments, device="cpu"),
        chosen,
        torch.stack([scores[number] for number in chosen]),
    )

"""Refuses what a model's head is asked for that counts on a row of logits for every token of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from adatp_kernels.integrations.transformers.layers import LayerWatch
from adatp_kernels.integrations.transformers.methods import positional_names


def watch_head(model: nn.Module, base: nn.Module, prunes: Callable[[dict[str, Any]], bool]) -> LayerWatch:
    """Stand before the forward of `model`, which has the head, until removed; there is none if that is `base` itself.

    Parameters
    ----------
    model, base : Module
    prunes : callable
        Whether something is pruned of a prompt with these arguments.
    """

    names = positional_names(model.forward)

    def run(_: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
        labels, kept = arguments.get("labels"), arguments.get("logits_to_keep", 0)
        number = isinstance(kept, int) and kept in (0, 1)
        if (number and labels is None) or not prunes(arguments):
            return forward(*args, **kwargs)
        if not number:
            raise ValueError(
                f"logits_to_keep: accelerate supports 0 (all) and 1 for a prompt with a video, got {kept!r}. Assisted "
                "decoding (assistant_model, prompt_lookup_num_tokens), which asks for more, is not supported"
            )
        raise ValueError(
            f"labels: expected None with a prompt that is pruned, of which fewer logits come back, got {list(arguments['labels'].shape)}; "
            "remove() the acceleration for a loss"
        )

    watch = LayerWatch([] if model is base else [model])
    watch.around = run
    return watch

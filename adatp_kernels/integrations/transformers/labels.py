"""Refuses labels for a prompt that is pruned: the logits come back shorter than they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from adatp_kernels.integrations.transformers.layers import LayerWatch


def watch_labels(model: nn.Module, base: nn.Module, prunes: Callable[[dict[str, Any]], bool]) -> LayerWatch:
    """Stand before the forward of `model`, which computes the loss, until removed; there is none if that is `base` itself.

    Parameters
    ----------
    model, base : Module
    prunes : callable
        Whether something is pruned of a prompt with these arguments.
    """

    def run(_: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("labels") is not None and prunes(kwargs):
            raise ValueError(
                f"labels: expected None with a prompt that is pruned, of which fewer logits come back, got {list(kwargs['labels'].shape)}; "
                "remove() the acceleration for a loss"
            )
        return forward(*args, **kwargs)

    watch = LayerWatch([] if model is base else [model])
    watch.around = run
    return watch

"""A video that several prompts are about is encoded once: what the vision tower gave is given again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.integrations.transformers import families


@contextmanager
def encode_once(model: Any) -> Iterator[None]:
    """Within, what the vision tower of `model` is called with again gives what it gave.

    Hooks on the tower run each time. Its arguments are compared element by element, which on a GPU waits for it.
    """
    family = families.find(model)
    base = family.base(model)
    tower = base.get_encoder(modality=family.modality)
    if tower is base:  # nowhere that transformers knows of
        yield
        return
    encode = tower.forward
    known: list[tuple[Any, Any]] = []
    chosen = getattr(model.config, "vision_feature_layer", None)

    def forward(*args: Any, **kwargs: Any) -> Any:
        for (those, named), output in known:
            if _same(those, args) and _same(named, kwargs):
                return copy.copy(output)  # models put what they make of its tensors in their place
        output = _without_others(encode(*args, **kwargs), chosen)
        known.append(((args, kwargs), copy.copy(output)))
        return output

    had = "forward" in vars(tower)
    tower.forward = forward
    try:
        yield
    finally:
        if had:
            tower.forward = encode
        else:
            del tower.forward


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors element by element."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _without_others(output: Any, chosen: int | list[int] | None) -> Any:
    """An output without the hidden states of layers that the decoder isn't fed from: they are most of its size."""
    states = getattr(output, "hidden_states", None)
    if states is None or chosen is None:
        return output
    used = {layer % len(states) for layer in ([chosen] if isinstance(chosen, int) else chosen)}
    output.hidden_states = tuple(state if layer in used else None for layer, state in enumerate(states))
    return output

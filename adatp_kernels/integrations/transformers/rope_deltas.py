"""How far M-RoPE's positions are from the columns' numbers: kept in the cache that it belongs to, not only on the model.

Where a video's tokens share positions, the text behind it begins earlier than its column says. transformers keeps the
difference of the last prompt that it read on the base module, and takes it for whatever cache is continued next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.integrations.transformers.cache import cache_of
from adatp_kernels.integrations.transformers.generation import prompt_of
from adatp_kernels.integrations.transformers.prefill import VideoPrefill

_NAME = "rope_deltas"


class RopeDeltas:
    """Gives the caches of pruned prompts the differences of their prompts, and a forward that continues one what it needs.

    Parameters
    ----------
    base : Module
        The module on which transformers keeps them, if it does so at all.
    """

    def __init__(self, base: Any) -> None:
        self._base, self._used = base, hasattr(base, _NAME)
        self._put: tuple[Tensor, Any] | None = None  # for the forward under way, and what was there before

    @contextmanager
    def within(self, arguments: dict[str, Any]) -> Iterator[None]:
        """Around a `generate`, which makes all positions at its beginning."""
        put = self._swap(arguments, prompt_of(arguments)) if self._used else None
        try:
            yield
        finally:
            self._swap_back(put)

    def begin(self, arguments: dict[str, Any]) -> None:
        """Before a forward of the base module; where positions come with it, as they do from `generate`, it needs nothing."""
        if self._used and arguments.get("position_ids") is None:
            self._put = self._swap(arguments, arguments.get("input_ids"))

    def end(self) -> Any:
        """After it: leave the base module as it was; returns what the forward's positions were made with."""
        if not self._used:
            return None
        mine, put, self._put = getattr(self._base, _NAME), self._put, None
        self._swap_back(put)
        return mine

    def keep(self, prefill: VideoPrefill, deltas: Any) -> None:
        """Let the cache of a prompt that was pruned carry what its positions were made with."""
        if not isinstance(deltas, Tensor) or prefill.cache is None:
            return
        rows = len(prefill.visuals)
        deltas = deltas.repeat_interleave(max(rows // len(deltas), 1), dim=0)
        if len(deltas) != rows:  # of another prompt: the positions were given
            return
        layer = prefill.cache.layers[-1]
        before = getattr(layer, _NAME, None)
        if before is None:  # a layer of transformers', which holds every column: nothing was dropped
            return
        if not before and not prefill.past:
            before = ((0, torch.zeros_like(deltas)),)  # of the text before the first video
        start = prefill.past + min(row.layout.key_range[0] for row in prefill.visuals)
        layer.rope_deltas = (*before, (start, deltas))

    def _swap(self, arguments: dict[str, Any], ids: Tensor | None) -> tuple[Tensor, Any] | None:
        """Put what the cache among the `arguments` carries on the base module; returns it, and what was there."""
        layers = getattr(cache_of(arguments), "layers", None)
        carried = getattr(layers[-1], _NAME, ()) if layers else ()
        if not carried:
            return None
        deltas = carried[-1][1]
        # The cache may hold copies of every prompt, as beams do.
        if ids is not None and len(deltas) > len(ids) and len(deltas) % len(ids) == 0:
            deltas = deltas[:: len(deltas) // len(ids)]
        before = getattr(self._base, _NAME)
        setattr(self._base, _NAME, deltas)
        return deltas, before

    def _swap_back(self, put: tuple[Tensor, Any] | None) -> None:
        # A prompt with a new video has left its own, as it does without accelerate.
        if put is not None and getattr(self._base, _NAME) is put[0]:
            setattr(self._base, _NAME, put[1])

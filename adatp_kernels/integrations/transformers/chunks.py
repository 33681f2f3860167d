"""Notices that `generate` reads its prompt in chunks, which the forwards that it makes do not show."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

_METHOD = "generate"


class ChunkWatch:
    """Stands before a model's `generate` until removed; hides nothing of it."""

    def __init__(self, model: Any) -> None:
        self._model, self._here, self._mine = model, threading.local(), None
        # What somebody else put before the method of the class, if anything.
        self._before = vars(model).get(_METHOD)
        generate = getattr(model, _METHOD, None)
        if generate is None:  # a model without a head
            return

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            _, given, *_ = (*args, None, None)  # generate's second argument
            config = kwargs.get("generation_config") or given or getattr(model, "generation_config", None)
            self._here.size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
            try:
                return generate(*args, **kwargs)
            finally:
                self._here.size = None

        self._mine = watched
        setattr(model, _METHOD, watched)

    @property
    def size(self) -> int | None:
        """Tokens of a chunk, if this thread is within a `generate` that makes them."""
        return getattr(self._here, "size", None)

    def check(self, ids: Tensor | None, pruned: Sequence[int]) -> None:
        """Refuse a `generate` that cuts a prompt with `pruned` tokens into chunks."""
        if self.size is not None and ids is not None and any(bool((ids == token).any()) for token in pruned):
            raise ValueError(
                "prefill_chunk_size: accelerate prunes a prompt with a video while it passes through the decoder in one forward, so "
                f"it has to be None, got {self.size!r}"
            )

    def remove(self) -> None:
        """Put `generate` back as it was, unless somebody put another before this one since."""
        if self._mine is not None and vars(self._model).get(_METHOD) is self._mine:
            delattr(self._model, _METHOD)
            if self._before is not None:
                setattr(self._model, _METHOD, self._before)

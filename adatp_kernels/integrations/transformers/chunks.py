"""Notices that `generate` reads its prompt in chunks, which the forwards that it makes do not show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from adatp_kernels.integrations.transformers.methods import MethodWatch
from adatp_kernels.integrations.transformers.turns import Turns


class ChunkWatch:
    """Stands before a model's `generate` until removed; hides nothing of it."""

    def __init__(self, model: Any, turns: Turns) -> None:
        self._model, self._turns, self._here = model, turns, threading.local()
        self._method = MethodWatch(model, "generate", self._run)

    def _run(self, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _, given, *_ = (*args, None, None)  # generate's second argument
        config = kwargs.get("generation_config") or given or getattr(self._model, "generation_config", None)
        with self._turns.generate():
            self._here.size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
            try:
                return generate(*args, **kwargs)
            finally:
                self._here.size = None

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
        """Put `generate` back as it was."""
        self._method.remove()

"""Knows the arguments of the `generate` that a thread is in, which the forwards that it makes do not show."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adatp_kernels.integrations.transformers.cache import cache_of
from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.methods import MethodWatch
from adatp_kernels.integrations.transformers.turns import Turns
from adatp_kernels.integrations.transformers.visuals import PromptArguments

# Enters what is to be done around a `generate` with these arguments.
Within = Callable[[dict[str, Any]], AbstractContextManager[Any]]
# The options of assisted decoding.
_ASSISTANCE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """A `generate` that runs: its arguments by name, and how many tokens of its prompt it reads at a time."""

    arguments: dict[str, Any]
    chunk_size: int | None


class _Here(threading.local):
    """Of this thread: the `generate` that it is in."""

    call: _Call | None = None


class GenerateWatch:
    """Stands before a model's `generate` until removed; hides nothing of it.

    Parameters
    ----------
    model : transformers model
    family : Family
        It says what a `generate` with pixels needs besides them.
    turns : Turns
    within : sequence of callables
        What runs around every `generate`, as `Within`.
    """

    def __init__(self, model: Any, family: Family, turns: Turns, within: Sequence[Within] = ()) -> None:
        self._model, self._family, self._turns, self._within = model, family, turns, within
        self._here = _Here()
        self._method = MethodWatch(model, "generate", self._run)

    def _run(self, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = (
            {**dict(zip(inspect.signature(generate).parameters, args, strict=False)), **kwargs} if args else kwargs
        )
        _check_given(self._family, arguments)
        outer = self.call  # one generate may run within another
        with ExitStack() as around:
            around.enter_context(self._turns.generate())
            for enter in self._within:
                around.enter_context(enter(arguments))
            self._here.call = _Call(arguments, _option(self._model, arguments, "prefill_chunk_size"))
            try:
                return generate(*args, **kwargs)
            finally:
                self._here.call = outer

    @property
    def call(self) -> _Call | None:
        """The `generate` that this thread is in, an object of its own for each."""
        return self._here.call

    @property
    def chunk_size(self) -> int | None:
        """Tokens of a chunk, if this thread is within a `generate` that makes them."""
        call = self.call
        return None if call is None else call.chunk_size

    def copies(self, rows: int) -> int:
        """How many of the `rows` that a forward reads are one prompt, as beams and several answers are."""
        call = self.call
        given = None if call is None else prompt_of(call.arguments)
        return 1 if given is None or rows % len(given) else rows // len(given)

    def given(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the user gave for a forward with these `arguments`: those of the `generate` that it is within, if any."""
        return arguments if self.call is None else self.call.arguments

    def before_encoding(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What `generate` was given that a forward with these `arguments` lacks, because its vision was encoded before it.

        Newer versions of transformers keep from the forward whatever the encoding takes: pixels, grids, masks.
        """
        call = self.call
        if call is None or not arguments.get("mm_encoder_outputs"):
            return {}
        return {name: value for name, value in call.arguments.items() if value is not None}

    def check_chunks(self, ids: Tensor | None, *, images: bool) -> None:
        """Refuse a `generate` that cuts a prompt with tokens of videos, or `images`, into chunks."""
        if self.chunk_size is None or ids is None:
            return
        pruned = [self._family.token_id(self._model)]
        image = self._family.image_id(self._model) if images else None
        if any(bool((ids == token).any()) for token in (pruned if image is None else [*pruned, image])):
            raise ValueError(
                "prefill_chunk_size: accelerate prunes a prompt with a video while it passes through the decoder in one forward, so "
                f"it has to be None, got {self.chunk_size!r}"
            )

    def check_candidates(self, arguments: dict[str, Any]) -> None:
        """Refuse a forward that reads candidates of assisted decoding together with the prompt: they would ask."""
        call, ids, cache = self.call, arguments.get("input_ids"), cache_of(arguments)
        if call is None or ids is None:
            return
        given = prompt_of(call.arguments)
        name = next((name for name in _ASSISTANCE if _option(self._model, call.arguments, name) is not None), None)
        if name is None or not isinstance(given, Tensor):
            return
        candidates = ids.shape[1] + (0 if cache is None else cache.get_seq_length()) - given.shape[1]
        if candidates > 0:
            raise ValueError(
                f"{name}: accelerate supports assisted decoding where the first candidates come behind the prompt, got {candidates} that "
                "came with a prompt with a video"
            )

    def remove(self) -> None:
        """Put `generate` back as it was."""
        self._method.remove()


def prompt_of(arguments: dict[str, Any]) -> Any:
    """The token ids among the arguments of a `generate`, which has two names for them."""
    ids = arguments.get("inputs")
    return arguments.get("input_ids") if ids is None else ids


def _check_given(family: Family, arguments: dict[str, Any]) -> None:
    """Refuse pixels without what tells their frames' sizes, at which versions that encode before the forward would fail."""
    if arguments.get(family.pixels) is not None:
        given = PromptArguments({name: value for name, value in arguments.items() if value is not None})
        for name in family.needs:
            given[name]


def _option(model: Any, arguments: dict[str, Any], name: str) -> Any:
    """An option of a `generate` with these `arguments`: as given, or as configured with it, or else on the model."""
    if name in arguments:
        return arguments[name]
    value = getattr(arguments.get("generation_config"), name, None)
    return getattr(getattr(model, "generation_config", None), name, None) if value is None else value

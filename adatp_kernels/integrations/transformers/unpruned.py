"""Tells whoever leaves an acceleration that had something to see, and pruned nothing, why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.warning import warn_user


class Unpruned:
    """Counts the prompts that passed through whole, and keeps why of those that came with something to see.

    Parameters
    ----------
    family : Family
    model : transformers model
    prune_images : bool
        Whether images were to be pruned.
    """

    def __init__(self, family: Family, model: Any, *, prune_images: bool) -> None:
        self._family, self._prune_images = family, prune_images
        self._base, self._token = type(family.base(model)).__name__, family.token_id(model)
        self._prompts = self._explained = 0
        self._reasons: dict[str, None] = {}

    def passed(self, arguments: dict[str, Any]) -> None:
        """A forward of the base module with these `arguments` read a prompt from which nothing is to be pruned."""
        self._prompts += 1
        names = self._seen(arguments)
        if not names:
            return
        if self._family.has_images(arguments) and not self._prune_images:
            reason = 'images came without a video, and images="keep" leaves them whole; images="prune" prunes them'
        else:
            family = self._family
            reason = (
                f"{names} came, in which the family {family.model_type} sees no video: it looks for {family.pixels}"
            )
        self._reasons[reason] = None
        self._explained += 1

    @contextmanager
    def within(self, arguments: dict[str, Any]) -> Iterator[None]:
        """Around a `generate`."""
        prompts, explained = self._prompts, self._explained
        yield
        names = self._seen(arguments)
        if not names or self._explained != explained:
            return
        if self._prompts == prompts:
            what = f"read no prompt by the forward of {self._base}, where accelerate looks for it"
        else:
            what = f"the forward of {self._base} got nothing of it, nor a token {self._token}"
        self._reasons[f"generate was given {names}, but {what}"] = None

    def tell(self, *, anything_pruned: bool) -> None:
        """Warn, once, if there was something to see and nothing was pruned."""
        reasons, self._reasons = self._reasons, {}
        if not reasons or anything_pruned:
            return
        warn_user(f"accelerate: nothing was pruned although there was something to see: {'; '.join(reasons)}")

    def forget(self) -> None:
        """An error is under way, which says enough."""
        self._reasons = {}

    def _seen(self, arguments: dict[str, Any]) -> str:
        """The names of what of the `arguments` is to be seen."""
        names = [
            name
            for name, value in arguments.items()
            if value is not None and ("pixel" in name or name == self._family.pixels)
        ]
        encoded = arguments.get("mm_encoder_outputs") or {}
        return ", ".join(
            names + [f"mm_encoder_outputs[{name!r}]" for name, value in encoded.items() if value is not None]
        )

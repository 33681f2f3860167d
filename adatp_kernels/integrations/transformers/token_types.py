"""Looks whether visual tokens get positions in time and space, where a model has them (M-RoPE), and not those of text.

transformers makes them from ``mm_token_type_ids``. Without, and behind a cache, it counts visual tokens on like text, some
ways without a word: other answers come out, pruned or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache

from adatp_kernels.integrations.transformers.cache import cache_of
from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.generation import prompt_of
from adatp_kernels.integrations.transformers.methods import positional_names
from adatp_kernels.integrations.transformers.warning import warn_user

_KINDS = "mm_token_type_ids"
_IMAGE, _VIDEO = 1, 2  # as transformers' processors number them


class TokenTypes:
    """What there is to say of the prompts of one model.

    Parameters
    ----------
    model : transformers model
    family : Family
    prunes : callable
        Whether something is pruned of a prompt with these arguments.
    """

    def __init__(self, model: Any, family: Family, prunes: Callable[[dict[str, Any]], bool]) -> None:
        base = family.base(model)
        self._used = hasattr(base, "get_rope_index") and _KINDS in positional_names(base.forward)
        self._prunes, self._video, self._image = prunes, family.token_id(model), family.image_id(model)
        self._warned = False

    @contextmanager
    def within(self, arguments: dict[str, Any]) -> Iterator[None]:
        """Around a `generate`, which makes all positions at its beginning."""
        if not self._used or arguments.get("position_ids") is not None or not self._prunes(arguments):
            yield
            return
        past = _length(cache_of(arguments))
        if not past:
            _check_kinds_came(arguments)
        try:
            yield
        except (StopIteration, RuntimeError) as error:
            # So it ends in transformers where grids and kinds of tokens don't agree.
            if past and isinstance(error, StopIteration):
                raise ValueError(_behind_a_cache(past)) from error
            if not past:
                self._check_kinds(arguments[_KINDS], prompt_of(arguments))
            raise

    def check(self, arguments: dict[str, Any]) -> None:
        """Of a forward of the base module that reads a prompt of which something is pruned.

        Raises
        ------
        ValueError
            If ``mm_token_type_ids`` are missing, or say something else than the token ids.

        Warns
        -----
        UserWarning
            Once, if the visual tokens stand behind a cache, and get positions of text.
        """
        if not self._used:
            return
        given, kinds, past = arguments.get("position_ids"), arguments.get(_KINDS), _length(cache_of(arguments))
        if past and not self._warned and (given is None or given.dim() == 2 or len(given) == 1):
            self._warned = True
            warn_user(f"accelerate: {_behind_a_cache(past)}")
        if given is None and not past:
            _check_kinds_came(arguments)
        if kinds is not None:
            self._check_kinds(kinds, arguments["input_ids"])

    def _check_kinds(self, kinds: Any, ids: Tensor) -> None:
        rows, length = ids.shape
        if not isinstance(kinds, Tensor) or kinds.dim() != 2 or len(kinds) != rows or kinds.shape[1] < length:
            came = list(kinds.shape) if isinstance(kinds, Tensor) else type(kinds).__name__
            raise ValueError(f"{_KINDS}: expected a tensor of the shape of input_ids {[rows, length]}, got {came}")
        kinds, ids = kinds[:, kinds.shape[1] - length :].cpu(), ids.cpu()
        if self._image is None:  # some families have one id for both
            right = torch.equal(kinds != 0, ids == self._video)
        else:
            right = torch.equal(kinds == _VIDEO, ids == self._video) and torch.equal(
                kinds == _IMAGE, ids == self._image
            )
        if not right:
            raise ValueError(
                f"{_KINDS}: expected {_VIDEO} at every video token of input_ids ({self._video}), {_IMAGE} at every image token "
                f"({self._image}) and 0 at text, as the processor returns them, got others"
            )


def _length(cache: Any) -> int:
    """Tokens that a cache holds; what is none is refused later."""
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0


def _check_kinds_came(arguments: dict[str, Any]) -> None:
    if arguments.get(_KINDS) is None:
        raise ValueError(
            f"{_KINDS}: expected with a video or image, as the processor returns them ({_IMAGE} for image tokens, {_VIDEO} for video "
            "tokens, 0 for text), or position_ids instead, got neither: visual tokens would get positions of text"
        )


def _behind_a_cache(past: int) -> str:
    return (
        f"past_key_values: transformers {transformers.__version__} cannot place visual tokens behind a cache, pruned or not, and gives "
        f"them positions of text where it does not fail; got a cache of {past} tokens. Give position_ids, or the whole conversation with "
        "all that is to be seen in it, without a cache"
    )

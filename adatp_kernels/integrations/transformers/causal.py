"""Refuses decoders that are not causal: tokens that see what comes behind them would be scored as if they did not."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.layout import VisualLayout


def check_causal(model: Any, decoder: Any) -> None:
    """Raise if `model` or its `decoder` says that tokens see what comes behind them.

    Raises
    ------
    ValueError
        If the configuration or an attention says so, or if the model makes masks by kinds of tokens, as those do whose visual tokens
        see each other.
    """
    config = decoder.config
    reason = None
    if getattr(config, "is_causal", True) is False:
        reason = "a configuration with is_causal=False"
    elif getattr(config, "use_bidirectional_attention", None) not in (None, False):
        reason = f"use_bidirectional_attention={config.use_bidirectional_attention!r}"
    elif any(getattr(layer.self_attn, "is_causal", True) is False for layer in decoder.layers):
        reason = "an attention with is_causal=False"
    else:
        masks = getattr(model, "create_masks_for_generate", None)
        names = () if masks is None else inspect.signature(masks).parameters
        kinds = next((name for name in names if name.endswith("token_type_ids")), None)
        if kinds is not None:
            reason = f"{type(model).__name__}, whose masks depend on {kinds}"
    if reason is not None:
        raise ValueError(f"model: accelerate supports decoders that are causal only, got {reason}")


def check_causal_mask(mask: Any, layouts: Sequence[VisualLayout], past: int) -> None:
    """Raise if a `mask` [B, H, T, past + T] lets a token see the next one, once the visual tokens of every row have begun.

    Parameters
    ----------
    mask : Tensor or None
        True, or zero, where a token is seen; what says less than which token sees which is let pass.
    layouts : sequence of VisualLayout
        Of each row.
    past : int
        Columns that the cache holds already.

    Raises
    ------
    ValueError
        If it does: a block of tokens that see each other has at least one such.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[3] != past + mask.shape[2]:
        return
    first = max(int(layout.index[0]) for layout in layouts)
    following = mask.diagonal(past + 1, dim1=2, dim2=3)[..., first:]
    seen = following if mask.dtype == torch.bool else following > torch.finfo(mask.dtype).min / 2
    if seen.any():
        raise ValueError(
            "attention_mask: accelerate supports decoders that are causal only, got a mask by which tokens of the prompt see what comes "
            "behind them"
        )

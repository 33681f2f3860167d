"""The attention implementation ``"adatp"``: flash attention whose LSE the scoring stage reuses."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from adatp_kernels.attention import flash_attention

NAME = "adatp"


def register() -> None:
    """Make ``attn_implementation="adatp"`` known to transformers, its masks included.

    Without the second line transformers would hand the function no mask at all, and padding would be
    attended to in silence.
    """
    AttentionInterface.register(NAME, adatp_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def adatp_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; returns ``(output [B, T, Hq, D], None)``."""
    output, _ = attention_with_lse(module, query, key, value, attention_mask, **options)
    return output, None


_autocast_available = functools.cache(torch.amp.is_autocast_available)


def under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as attention gets them: where autocast is on for their device, it casts all but float64 to its dtype.

    Eager products and `scaled_dot_product_attention` are on autocast's list of what runs in lower precision. Rotary embeddings
    are not: queries and keys leave them in float32, beside values in autocast's dtype.
    """
    device = tensors[0].device.type
    if not (_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def attention_with_lse(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """As `adatp_attention`, but returns the LSE [B, Hq, T] beside the output; under autocast in its dtype, as sdpa's is.

    Raises
    ------
    ValueError
        If the model asks for something this attention does not do.
    """
    refused = [
        name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if options.get(name) is not None
    ]
    if dropout or refused:
        raise ValueError(
            f'attn_implementation="adatp": {", ".join(refused) or "dropout"} is not supported; use "sdpa" or "eager" instead'
        )
    query, key, value = under_autocast(query, key, value)
    if attention_mask is not None:
        output, lse = flash_attention(query, key, value, causal=False, scale=scaling, mask=attention_mask)
    else:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        output, lse = flash_attention(query, key, value, causal=causal, scale=scaling)
    return output.transpose(1, 2).contiguous(), lse

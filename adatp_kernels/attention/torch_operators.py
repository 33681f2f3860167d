"""PyTorch's own operators that return an LSE: flash, memory-efficient and cuDNN attention.

Which shapes and alignments they take is read from PyTorch 2.13's sources: ``nn/attention/bias.py`` says how the causal masks
are aligned, and ``mem_eff_attention/kernel_forward.h``, among its headers, what is checked before a launch. Those for CUDA have
not run on a GPU here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adatp_kernels.attention import reference
from adatp_kernels.attention.call import (
    HALF,
    Call,
    Kind,
    PackedCall,
    hardware,
    refuses_half_kernels,
    without_plus_infinity,
)
from adatp_kernels.attention.reference import NEG_INF

_LOWER_RIGHT = 2  # torch.nn.attention.bias.CausalVariant.LOWER_RIGHT; 0 is no causal mask


def refuses_flash(kind: Kind) -> str | None:
    """Why the flash operators cannot run a call of this kind."""
    if kind.device == "cpu":
        return None
    if kind.device != "cuda":
        return f"no flash operator for device {kind.device}"
    if kind.capability < (8, 0):
        return f"its flash operator needs a GPU of compute capability 8.0, not {kind.capability}"
    return refuses_half_kernels(kind) or ("its flash operator takes no mask" if kind.masked else None)


def run_flash(call: Call) -> tuple[Tensor, Tensor]:
    """The flash operator of the device."""
    causal = call.causal and call.query.shape[2] > 1
    if hardware(call.query.device)[0] == "cpu":
        return _run_flash_on_cpu(call, causal)
    # Its causal mask is aligned to the lower right, unlike scaled_dot_product_attention's.
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        *_dense_rows(call.query, call.key, call.value), 0.0, causal, False, scale=call.scale
    )
    return out, without_plus_infinity(lse) if causal and call.offset < 0 else lse


def _run_flash_on_cpu(call: Call, causal: bool) -> tuple[Tensor, Tensor]:
    mask = call.mask
    if causal and call.offset:  # the operator aligns its own causal mask to the upper left
        rows, columns = call.query.shape[2], call.key.shape[2]
        lower_right = torch.ones(rows, columns, dtype=torch.bool, device=call.query.device).tril(call.offset)
        mask, causal = lower_right[None, None] if mask is None else mask & lower_right, False
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_dense_rows(call.query, call.key, call.value), 0.0, causal,
        attn_mask=None if mask is None else _bias(mask, call.query), scale=call.scale,
    )  # fmt: skip
    # With both a mask and its own causal rule a row may see nothing; the operator then returns an LSE of 0.
    return _without_blind_rows(out, lse, None if mask is None else _blind_rows(mask, 0 if causal else None))


def refuses_efficient(kind: Kind) -> str | None:
    """Why memory-efficient attention cannot run a call of this kind."""
    if kind.device != "cuda":
        return f"no flash operator for device {kind.device}"
    if kind.dtype not in (*HALF, torch.float32):
        return f"on CUDA its memory-efficient operator takes float16, bfloat16 and float32, not {kind.dtype}"
    if kind.dtype == torch.bfloat16 and kind.capability < (8, 0):
        return f"bfloat16 needs a GPU of compute capability 8.0, not {kind.capability}"
    if kind.head_dim * kind.dtype.itemsize % 16:
        return f"its memory-efficient operator needs a head dim of whole 16 bytes, not {kind.head_dim} of {kind.dtype}"
    return None


def run_efficient(call: Call) -> tuple[Tensor, Tensor]:
    """Memory-efficient attention, which takes any mask and aligns causal ones to the lower right."""
    batch, heads, rows, _ = call.query.shape
    kv_heads, columns = call.key.shape[1:3]
    query, key, value, mask = call.query, call.key, call.value, call.mask
    causal = call.causal and rows > 1
    if heads != kv_heads and rows == 1:
        # A single row sees what every head's sees: the heads that share a key head are its rows, and no key is copied.
        query = query[:, :, 0].unflatten(1, (kv_heads, -1))
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, :, 0].unflatten(1, (kv_heads, -1))
    elif heads != kv_heads:  # the operator knows no groups
        key, value = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (key, value))
    bias = None if mask is None else _bias(mask, query).expand(*query.shape[:3], columns)
    tokens_first = [t.transpose(1, 2) for t in _dense_rows(query, key, value)]
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        *tokens_first, bias, None, None, None, None, 0.0, _LOWER_RIGHT if causal else 0, True, scale=call.scale
    )
    # The LSE is padded to whole blocks of rows, and 0 for a row that sees nothing.
    out, lse = out.transpose(1, 2).reshape(call.query.shape), lse[:, :, : query.shape[2]].reshape(batch, heads, rows)
    return _without_blind_rows(out, lse, _blind_rows_of(call))


def refuses_cudnn(kind: Kind) -> str | None:
    """Why cuDNN's attention cannot run a call of this kind."""
    if kind.device != "cuda":
        return f"no flash operator for device {kind.device}"
    if kind.capability < (8, 0):
        return f"cuDNN's attention needs a GPU of compute capability 8.0, not {kind.capability}"
    if kind.single or (kind.causal and not kind.square):
        return "cuDNN's attention needs more than one row, and as many rows as keys where it is causal"
    if kind.head_dim > 128:
        return f"cuDNN's attention needs a head dim of at most 128, not {kind.head_dim}"
    return refuses_half_kernels(kind)


def run_cudnn(call: Call) -> tuple[Tensor, Tensor]:
    """cuDNN's attention; it makes a plan for every new shape, so it is the last choice."""
    bias = None
    if call.mask is not None:
        bias = _bias(call.mask, call.query).expand(len(call.query), -1, call.query.shape[2], -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *_dense_rows(call.query, call.key, call.value), bias, True, 0.0, call.causal, False, scale=call.scale
    )
    return _without_blind_rows(out, lse.reshape(call.query.shape[:3]), _blind_rows_of(call))


def refuses_packed(kind: Kind) -> str | None:
    """Why the flash operator cannot run packed sequences of this kind."""
    if kind.device == "cpu":
        return "its flash operator for the CPU takes no packed sequences"
    return refuses_flash(kind)


def run_packed(call: PackedCall) -> tuple[Tensor, Tensor]:
    """The flash operator of CUDA over packed sequences; causal masks are aligned to the lower right."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *_dense_rows(call.query, call.key, call.value), call.cu_seqlens_q, call.cu_seqlens_k,
        call.max_seqlen_q, call.max_seqlen_k, 0.0, call.causal, False, scale=call.scale,
    )  # fmt: skip
    return out, without_plus_infinity(lse)


def refuses_each_sequence(kind: Kind) -> str | None:
    """Why no operator can run the sequences one by one."""
    return None if kind.device == "cpu" else refuses_efficient(kind)


def run_each_sequence(call: PackedCall) -> tuple[Tensor, Tensor]:
    """A dense operator for every sequence."""
    return reference.each_sequence(run_flash if hardware(call.query.device)[0] == "cpu" else run_efficient, call)


def _dense_rows(*tensors: Tensor) -> list[Tensor]:
    """The operators want the innermost dimension contiguous; models always have it so."""
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]


def _bias(mask: Tensor, query: Tensor) -> Tensor:
    """What is added to the scores: 0 where `mask` is True, −inf elsewhere, in query's dtype; one row if all are alike.

    Rows begin at multiples of 16 elements, as the memory-efficient operator asks for.
    """
    if mask.stride(2) == 0:
        mask = mask[:, :, :1]
    columns = mask.shape[3]
    bias = query.new_full((*mask.shape[:3], -(-columns // 16) * 16), NEG_INF)[..., :columns]
    return bias.masked_fill_(mask, 0.0)


def _blind_rows_of(call: Call) -> Tensor | None:
    causal = call.causal and call.query.shape[2] > 1
    if call.mask is not None:
        return _blind_rows(call.mask, call.offset if causal else None)
    if causal and call.offset < 0:
        return (torch.arange(call.query.shape[2], device=call.query.device) < -call.offset)[None, None]
    return None


def _blind_rows(mask: Tensor, offset: int | None) -> Tensor:
    """Which rows see nothing, [B or 1, Hq or 1, T]: by `mask` [.., T, N] and, given an offset, by causality too."""
    blind = ~mask.any(-1)
    if offset is None:
        return blind
    first = mask.view(torch.uint8).argmax(-1)  # the first key that the mask shows
    return blind | (first > torch.arange(mask.shape[2], device=mask.device) + offset)


def _without_blind_rows(out: Tensor, lse: Tensor, blind: Tensor | None) -> tuple[Tensor, Tensor]:
    if blind is None:
        return out, lse
    return out.masked_fill(blind[..., None], 0.0), lse.masked_fill(blind, NEG_INF)

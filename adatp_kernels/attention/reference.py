"""Attention in plain PyTorch, which materialises the map and runs anything; and packed sequences one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from adatp_kernels.attention.call import Call, PackedCall
from adatp_kernels.ops import reference

NEG_INF = reference.NEG_INF


def run(call: Call) -> tuple[Tensor, Tensor]:
    """Output and LSE of a dense call."""
    start = call.offset if call.causal else call.key.shape[2]
    with reference.without_autocast(call.query.device):
        logits = reference.visible_logits(call.query, call.key, start, 0, call.scale, None)  # [B, Hkv, G, T, N]
        if call.mask is not None:
            mask = call.mask
            mask = mask.unflatten(1, logits.shape[1:3]) if mask.shape[1] > 1 else mask[:, :, None]
            logits = logits.masked_fill(~mask, NEG_INF)
        lse = logits.logsumexp(-1)
        probability = (logits - lse.masked_fill(lse == NEG_INF, float("inf"))[..., None]).exp()
        out = probability @ call.value.to(probability.dtype)[:, :, None]
    return out.flatten(1, 2).to(call.query.dtype), lse.flatten(1, 2)


def each_sequence(run: Callable[[Call], tuple[Tensor, Tensor]], call: PackedCall) -> tuple[Tensor, Tensor]:
    """A packed call as a dense one for every sequence; waits for the device to know the lengths."""
    query, key, value = call.query, call.key, call.value
    out = torch.zeros_like(query)
    lse = torch.full(
        query.shape[1::-1], NEG_INF, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device
    )
    bounds = [itertools.pairwise(cumulative.tolist()) for cumulative in (call.cu_seqlens_q, call.cu_seqlens_k)]
    for (row, row_end), (first, end) in zip(*bounds, strict=True):
        if row == row_end or first == end:
            continue
        q, k, v = query[None, row:row_end], key[None, first:end], value[None, first:end]
        own = run(Call(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), call.causal, call.scale, None))
        out[row:row_end], lse[:, row:row_end] = own[0][0].transpose(0, 1), own[1][0]
    return out, lse

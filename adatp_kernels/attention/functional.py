"""The public functions: what they compute, what they accept, and the way to a provider."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adatp_kernels.attention.call import Call, PackedCall
from adatp_kernels.attention.providers import DENSE, PACKED
from adatp_kernels.errors import choice, integer
from adatp_kernels.ops import checks


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    provider: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention together with each row's log-sum-exp.

    Parameters
    ----------
    query : Tensor [B, Hq, T, D]
    key, value : Tensor [B, Hkv, N, D]
        Same dtype and device as `query`; ``Hq % Hkv == 0``; heads are not repeated.
    causal : bool
        Row i sees keys ``≤ N − T + i``: the last row sees everything.
    scale : float, optional
        ``D ** -0.5`` by default.
    mask : BoolTensor, broadcastable to [B, Hq, T, N], optional
        False hides a key from a row, on top of `causal`.
    provider : {"auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "torch", "reference"}
        ``"auto"`` takes the first of these that is installed and can run the call; one that raises before it has an answer
        is passed over, for later calls of the kind as well. ``"torch"`` is PyTorch's own operators: flash, and on CUDA
        memory-efficient and cuDNN attention, for masks and what flash does not take. ``"reference"`` materialises the
        map and runs anything.

    Returns
    -------
    out : Tensor [B, Hq, T, D]
        In query's dtype; zero for a row that sees nothing.
    lse : Tensor [B, Hq, T]
        float32 (float64 for float64 input), natural logarithm, −inf for a row that sees nothing.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype or shape; the message names them.
    RuntimeError
        If the named provider cannot run the call; the message says why.
    """
    scale = checks.attention_inputs(query, key, 0, scale, None)
    checks.tensor("value", value, (query.dtype,), query.device)
    checks.shape("value", value, key.shape, "key's shape")
    if mask is not None:
        checks.tensor("mask", mask, (torch.bool,), query.device)
        full = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        if mask.dim() != 4 or any(size not in (1, whole) for size, whole in zip(mask.shape, full, strict=True)):
            raise ValueError(
                f"mask: expected a shape broadcastable to [B, Hq, T, N] = {list(full)}, got {list(mask.shape)}"
            )
        mask = mask.expand(*mask.shape[:2], *full[2:])
    if not isinstance(causal, bool):
        raise TypeError(f"causal: expected a bool, got {causal!r}")
    choice("provider", provider, DENSE.names)
    return DENSE.run(provider, Call(query, key, value, causal, scale, mask))


def flash_attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    provider: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`flash_attention` of sequences of any lengths packed one after the other, with the LSE that `column_sums_varlen` takes.

    Parameters
    ----------
    query : Tensor [total_q, Hq, D]
    key, value : Tensor [total_k, Hkv, D]
        Same dtype and device as `query`; ``Hq % Hkv == 0``; heads are not repeated.
    cu_seqlens_q, cu_seqlens_k : integer Tensor [B + 1]
        Where each sequence begins, from 0, and last where the last one ends; on the same device, int32 at best. What lies
        behind is padding, whose output and LSE are undefined.
    max_seqlen_q, max_seqlen_k : int, optional
        Rows and keys of the longest sequence, or more. Read from the tensors where they are absent, which waits for the device.
    causal : bool
        Row i of a sequence with T rows and N keys sees its keys ``≤ N − T + i``.
    scale : float, optional
        ``D ** -0.5`` by default.
    provider : {"auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "torch", "flashinfer", "reference"}
        As for `flash_attention`. ``"flashinfer"`` plans on every call, which waits for the device. ``"torch"`` is the packed
        flash operator on CUDA; elsewhere, and for what that one does not take, it runs sequence by sequence, as
        ``"reference"`` does, which also waits.

    Returns
    -------
    out : Tensor [total_q, Hq, D]
        In query's dtype; zero for a row that sees nothing.
    lse : Tensor [Hq, total_q]
        float32 (float64 for float64 input), natural logarithm, −inf for a row that sees nothing.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype, shape or value; the message names them. Lengths are checked on the host
        only: reading them from a GPU would wait for it, and there they are trusted.
    RuntimeError
        If the named provider cannot run the call; the message says why.
    """
    scale = checks.packed_inputs(query, key, cu_seqlens_q, cu_seqlens_k, None, None, scale, None, None)
    checks.tensor("value", value, (query.dtype,), query.device)
    checks.shape("value", value, key.shape, "key's shape")
    if not isinstance(causal, bool):
        raise TypeError(f"causal: expected a bool, got {causal!r}")
    choice("provider", provider, PACKED.names)
    longest = (
        _longest("max_seqlen_q", max_seqlen_q, cu_seqlens_q),
        _longest("max_seqlen_k", max_seqlen_k, cu_seqlens_k),
    )
    bounds = (cu_seqlens_q.to(torch.int32).contiguous(), cu_seqlens_k.to(torch.int32).contiguous())
    return PACKED.run(provider, PackedCall(query, key, value, *bounds, *longest, causal, scale))


def _longest(name: str, given: Any, cumulative: Tensor) -> int:
    if given is not None:
        integer(name, given, low=0)
        if cumulative.device.type != "cpu":
            return given
    longest = int(cumulative.diff().max())
    if given is not None and given < longest:
        raise ValueError(f"{name}: expected at least {longest}, the longest sequence, got {given}")
    return longest if given is None else given

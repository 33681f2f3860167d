"""One attention call with checked arguments, and what of it decides who can run it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class Kind(NamedTuple):
    """What a provider's refusal may depend on: calls of one kind are all run by the same provider."""

    device: str
    capability: tuple[int, int]  # (0, 0) where there is no CUDA
    dtype: torch.dtype
    head_dim: int
    group: int  # query heads that share a key head
    causal: bool  # for a reason: a single row sees everything
    square: bool  # as many rows as keys
    single: bool  # one row
    masked: bool


# device, dtype, head dim, query heads, key heads, and the last four of a kind
Traits = tuple[torch.device, torch.dtype, int, int, int, bool, bool, bool, bool]


class Call(NamedTuple):
    """A dense call, as `flash_attention` makes it."""

    query: Tensor  # [B, Hq, T, D]
    key: Tensor  # [B, Hkv, N, D]
    value: Tensor  # [B, Hkv, N, D]
    causal: bool
    scale: float
    mask: Tensor | None  # bool, [B or 1, Hq or 1, T, N]

    @property
    def offset(self) -> int:
        """Keys before the first row's own: the causal mask is aligned to the lower right."""
        return self.key.shape[2] - self.query.shape[2]

    @property
    def traits(self) -> Traits:
        """What `kind_of` looks at."""
        query, key = self.query, self.key
        _, heads, rows, dim = query.shape
        _, kv_heads, columns, _ = key.shape
        return (
            query.device, query.dtype, dim, heads, kv_heads, self.causal, rows == columns, rows == 1, self.mask is not None
        )  # fmt: skip


class PackedCall(NamedTuple):
    """A call of sequences packed one after the other, as `flash_attention_varlen` makes it."""

    query: Tensor  # [total_q, Hq, D]
    key: Tensor  # [total_k, Hkv, D]
    value: Tensor  # [total_k, Hkv, D]
    cu_seqlens_q: Tensor  # int32 [B + 1]
    cu_seqlens_k: Tensor  # int32 [B + 1]
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool
    scale: float

    @property
    def traits(self) -> Traits:
        """What `kind_of` looks at."""
        _, heads, dim = self.query.shape
        return (
            self.query.device, self.query.dtype, dim, heads, self.key.shape[1], self.causal, False, False, False
        )  # fmt: skip


def kind_of(traits: Traits) -> Kind:
    """The kind of a call. Its traits alone are a key that costs half as much."""
    device, dtype, head_dim, heads, kv_heads, causal, square, single, masked = traits
    return Kind(*hardware(device), dtype, head_dim, heads // kv_heads, causal and not single, square, single, masked)


def hardware(device: torch.device) -> tuple[str, tuple[int, int]]:
    """The device's type and, of a CUDA device, its compute capability."""
    return ("cuda", _capability(device)) if device.type == "cuda" else (device.type, (0, 0))


_capability = functools.cache(torch.cuda.get_device_capability)


def refuses_half_kernels(kind: Kind) -> str | None:
    """What every flash kernel on CUDA asks of dtype and head dim."""
    if kind.dtype not in HALF:
        return f"on CUDA it takes float16 and bfloat16, not {kind.dtype}"
    if kind.head_dim % 8 or kind.head_dim > 256:
        return f"on CUDA the head dim must be a multiple of 8 up to 256, not {kind.head_dim}"
    return None


def without_plus_infinity(lse: Tensor) -> Tensor:
    """−inf for a row that sees nothing, where FlashAttention 2 says +inf."""
    return lse.masked_fill(lse == float("inf"), float("-inf"))


def check_result(out: Tensor, lse: Tensor, out_shape: torch.Size, lse_shape: tuple[int, ...]) -> None:
    """Raise unless a package that is not ours returned what it did when this was written."""
    if out.shape != out_shape or not isinstance(lse, Tensor) or lse.shape != lse_shape:
        got = list(lse.shape) if isinstance(lse, Tensor) else lse
        raise NotImplementedError(
            f"this version returns an output of shape {list(out.shape)} and an LSE of {got}, not {list(out_shape)} and "
            f"{list(lse_shape)}"
        )

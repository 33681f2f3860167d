"""FlashAttention 2, 3 and 4, whichever of them are installed.

What each version's functions take and return is read from the sources of flash-attn 2.8.3, of FlashAttention 3 in its ``hopper``
folder and in the development tree, and of flash-attn-4 4.0.0b36 (``tests/real_providers.py`` compares). None has run here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.attention.call import (
    Call,
    Kind,
    PackedCall,
    check_result,
    refuses_half_kernels,
    without_plus_infinity,
)

# flash-attn-4 alone makes a namespace package of flash_attn, and the wheel of flash-attn 2.8 has a flash_attn.cute, too.
MODULES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
# Version 4 calls it return_lse; 2 and newer 3 return the LSE beside the attention probabilities.
_FLAGS = ("return_lse", "return_attn_probs")


def refuses(module: str, packed: bool, architectures: tuple[int, ...], kind: Kind) -> str | None:
    """Why the version in `module` cannot run a call of this kind on GPUs of these major compute capabilities."""
    if kind.device != "cuda":
        return f"it needs a CUDA device, not {kind.device}"
    if kind.capability[0] not in architectures:
        return f"it needs a GPU of compute capability {list(architectures)}, not {kind.capability}"
    if module == MODULES[4] and kind.capability[0] in (10, 11) and 128 < kind.head_dim < 256:
        return f"on compute capability {kind.capability} the head dim must be at most 128, or 256, not {kind.head_dim}"
    reason = refuses_half_kernels(kind) or ("it takes no mask" if kind.masked else None)
    if reason is None:  # last, for it imports
        found = function(module, packed)
        reason = found if isinstance(found, str) else None
    return reason


@functools.cache
def function(module: str, packed: bool) -> Any:
    """The version's function, told to return the LSE, or a str that says why there is none."""
    name = "flash_attn_varlen_func" if packed else "flash_attn_func"
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever an import may raise
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{module}.".startswith(f"{error.name}.")
        ):
            return f"the module {module} is not installed"
        return f"the module {module} cannot be imported: {type(error).__name__}: {error}"
    if found is None:
        return f"the module {module} has no {name}"
    parameters = inspect.signature(found).parameters
    flag = next((flag for flag in _FLAGS if flag in parameters), None)
    if flag is None:
        return f"{name} of the module {module} has no parameter for the LSE"
    if "window_size" not in parameters:
        return f"the module {module} is older than FlashAttention 2.3: causal masks may be aligned to the upper left"
    return functools.partial(found, **{flag: True})


def run(module: str, call: Call) -> tuple[Tensor, Tensor]:
    """A dense call."""
    tokens_first = [t.transpose(1, 2) for t in (call.query, call.key, call.value)]
    with torch.cuda.device_of(call.query):  # version 4 launches on the current device
        out, lse, *_ = function(module, False)(*tokens_first, softmax_scale=call.scale, causal=call.causal)
    check_result(out, lse, tokens_first[0].shape, call.query.shape[:3])
    return out.transpose(1, 2), without_plus_infinity(lse) if call.causal and call.offset < 0 else lse


def run_packed(module: str, call: PackedCall) -> tuple[Tensor, Tensor]:
    """A packed call."""
    with torch.cuda.device_of(call.query):
        out, lse, *_ = function(module, True)(
            call.query,
            call.key,
            call.value,
            cu_seqlens_q=call.cu_seqlens_q,
            cu_seqlens_k=call.cu_seqlens_k,
            max_seqlen_q=call.max_seqlen_q,
            max_seqlen_k=call.max_seqlen_k,
            softmax_scale=call.scale,
            causal=call.causal,
        )
    check_result(
        out, lse, call.query.shape, tuple(call.query.shape[1::-1])
    )  # before 2.6 it was padded, [B, Hq, max_seqlen]
    return out, without_plus_infinity(lse)

"""Flash attention that also returns the LSE: one function, several providers.

Providers differ in layout, in causal alignment and in what they return for a row that sees nothing;
all of that is settled here, and nothing else in the package knows of it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adatp_kernels.errors import choice
from adatp_kernels.ops import checks, reference

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Call:
    """One attention call with checked arguments, as the providers see it."""

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
        ``"auto"`` takes the first of these that is installed and can run the call. ``"torch"`` is
        PyTorch's own flash operator; ``"reference"`` materialises the map and runs anything.

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
    call = _Call(query, key, value, causal, scale, mask)
    choice("provider", provider, ("auto", *_PROVIDERS))
    if provider != "auto":
        reason = _PROVIDERS[provider].refuses(call)
        if reason:
            raise RuntimeError(f"provider: {provider!r} cannot run this call: {reason}")
        return _PROVIDERS[provider].run(call)
    return next(candidate.run(call) for candidate in _PROVIDERS.values() if candidate.refuses(call) is None)


def _run_reference(call: _Call) -> tuple[Tensor, Tensor]:
    start = call.offset if call.causal else call.key.shape[2]
    logits = reference.visible_logits(call.query, call.key, start, 0, call.scale, None)  # [B, Hkv, G, T, N]
    if call.mask is not None:
        mask = call.mask.expand(-1, call.query.shape[1], -1, -1) if call.mask.shape[1] > 1 else call.mask
        logits = logits.masked_fill(
            ~(mask.unflatten(1, logits.shape[1:3]) if mask.shape[1] > 1 else mask[:, :, None]), reference.NEG_INF
        )
    lse = logits.logsumexp(-1)
    probability = (logits - lse.masked_fill(lse == reference.NEG_INF, float("inf"))[..., None]).exp()
    out = probability @ call.value.to(probability.dtype)[:, :, None]
    return out.flatten(1, 2).to(call.query.dtype), lse.flatten(1, 2)


def _refuses_torch(call: _Call) -> str | None:
    rows = call.query.shape[2]
    if call.query.device.type == "cpu":
        return None
    if call.query.device.type != "cuda":
        return f"no flash operator for device {call.query.device}"
    if call.query.dtype not in HALF:
        return f"on CUDA it takes float16 and bfloat16, not {call.query.dtype}"
    if call.query.shape[3] % 8 or call.query.shape[3] > 256:
        return f"on CUDA the head dim must be a multiple of 8 up to 256, not {call.query.shape[3]}"
    if call.mask is not None:
        return "on CUDA it takes no mask"
    if call.causal and rows > 1 and call.offset:
        return "on CUDA its causal mask is aligned to the upper left, so T must equal N"
    return None


def _run_torch(call: _Call) -> tuple[Tensor, Tensor]:
    rows, columns = call.query.shape[2], call.key.shape[2]
    causal = call.causal and rows > 1
    if call.query.device.type != "cpu":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            call.query, call.key, call.value, 0.0, causal, False, scale=call.scale
        )
        return out, lse
    mask = call.mask
    if causal and call.offset:  # the operator aligns its own causal mask to the upper left
        lower_right = torch.ones(rows, columns, dtype=torch.bool, device=call.query.device).tril(call.offset)
        mask, causal = lower_right[None, None] if mask is None else mask & lower_right, False
    bias = (
        None if mask is None else torch.zeros(mask.shape, dtype=call.query.dtype).masked_fill(~mask, reference.NEG_INF)
    )
    # The operator wants the innermost dimension contiguous; models always have it so.
    inputs = [t if t.stride(-1) == 1 else t.contiguous() for t in (call.query, call.key, call.value)]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *inputs, 0.0, causal, attn_mask=bias, scale=call.scale
    )
    if mask is not None:
        # With both a mask and its own causal rule a row may see nothing; the operator then returns an LSE of 0.
        if causal:
            mask = mask & torch.ones(rows, columns, dtype=torch.bool).tril()
        blind = ~mask.any(-1)
        lse = lse.masked_fill(blind, reference.NEG_INF)
        out = out.masked_fill(blind[..., None], 0.0)
    return out, lse


@functools.cache
def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent package is missing, or broken
        return False


def _refuses_flash_attn(module: str, architectures: tuple[int, ...], call: _Call) -> str | None:
    if call.query.device.type != "cuda":  # first: the other questions cost time on every call
        return f"it needs a CUDA device, not {call.query.device}"
    if not _installed(module):
        return f"the module {module} is not installed"
    if torch.cuda.get_device_capability(call.query.device)[0] not in architectures:
        return f"it needs a GPU of compute capability {list(architectures)}, not {torch.cuda.get_device_capability(call.query.device)}"
    if call.query.dtype not in HALF:
        return f"it takes float16 and bfloat16, not {call.query.dtype}"
    if call.query.shape[3] % 8 or call.query.shape[3] > 256:
        return f"the head dim must be a multiple of 8 up to 256, not {call.query.shape[3]}"
    if call.mask is not None:
        return "it takes no mask"
    return None


def _run_flash_attn(module: str, call: _Call) -> tuple[Tensor, Tensor]:
    function = importlib.import_module(module).flash_attn_func
    # Version 4 calls it return_lse; 2 and 3 return the LSE beside the attention probabilities.
    flag = "return_lse" if "return_lse" in inspect.signature(function).parameters else "return_attn_probs"
    tokens_first = [t.transpose(1, 2) for t in (call.query, call.key, call.value)]
    out, lse, *_ = function(*tokens_first, softmax_scale=call.scale, causal=call.causal, **{flag: True})
    return out.transpose(1, 2), lse.masked_fill(lse == float("inf"), reference.NEG_INF)


@dataclass(frozen=True)
class _Provider:
    refuses: Callable[[_Call], str | None]
    run: Callable[[_Call], tuple[Tensor, Tensor]]


def _flash_attn(module: str, *architectures: int) -> _Provider:
    return _Provider(
        lambda call: _refuses_flash_attn(module, architectures, call), lambda call: _run_flash_attn(module, call)
    )


# Fastest first; the last one runs anything.
_PROVIDERS = {
    "flash_attn_4": _flash_attn("flash_attn.cute", 9, 10, 11),
    "flash_attn_3": _flash_attn("flash_attn_interface", 9),
    "flash_attn_2": _flash_attn("flash_attn", 8, 9, 10, 12),
    "torch": _Provider(_refuses_torch, _run_torch),
    "reference": _Provider(lambda call: None, _run_reference),
}

"""A machine with a GPU, played on the CPU: providers with the real signatures, results and ways to fail.

Packages are written to disk and imported as the real ones are. PyTorch's CUDA operators check their arguments by the real
operators' own schemas and shapes (the meta kernels), and then as the real kernels do before a launch. Results are the exact ones
in each provider's own layout and convention, for a row that sees nothing the worst that any version returns.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from contextlib import contextmanager

import torch
from attention_inputs import expected
from attention_signatures import FLASHINFER, SIGNATURES

from adatp_kernels.attention import call, flash_attn, flashinfer, providers, torch_operators

# What a package puts where; the wheel of flash-attn 2.8.3 ships an old flash_attn/cute, which flash-attn-4 replaces.
PACKAGES = {
    "none": {},
    "FA2": {"flash_attn": "2", "flash_attn/cute": "4 old"},
    "FA4": {"flash_attn/cute": "4"},
    "FA2 and FA4": {"flash_attn": "2", "flash_attn/cute": "4"},
    "old FA3": {"flash_attn_interface": "3 old"},
    "FA3": {"flash_attn_interface": "3"},
}
_NAMES = ("flash_attn", "flash_attn_interface", "flashinfer", "cutlass")
_REAL = {
    name: getattr(torch.ops.aten, name)
    for name in (
        "_scaled_dot_product_flash_attention",
        "_efficient_attention_forward",
        "_scaled_dot_product_cudnn_attention",
        "_flash_attention_forward",
    )
}


class Machine:
    """The GPU in question, and a record of what ran on it."""

    capability = (9, 0)
    ran: list = []  # noqa: RUF012
    arguments: list = []  # noqa: RUF012


class StandIn:
    """What is called instead of an operator; of everything else, such as its overloads, it is the operator."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *args, **kwargs):
        return globals()[self.name](*args, **kwargs)

    def __getattr__(self, attribute):
        return getattr(_REAL[self.name], attribute)


@contextmanager
def machine(monkeypatch, folder, *, capability, packages="none", cutlass=False, with_flashinfer=False):
    """CPU tensors pass for CUDA tensors of this `capability`, and `packages` are installed in `folder`."""
    write_packages(folder, packages, cutlass, with_flashinfer)
    monkeypatch.syspath_prepend(folder)
    for module in (call, torch_operators):
        monkeypatch.setattr(module, "hardware", lambda device: ("cuda", capability))
    monkeypatch.setattr(Machine, "capability", capability)
    monkeypatch.setattr(Machine, "ran", [])
    monkeypatch.setattr(Machine, "arguments", [])
    for name in _REAL:
        monkeypatch.setattr(torch.ops.aten, name, StandIn(name))
    _forget()
    try:
        yield Machine
    finally:
        _forget()


def _forget():
    for name in [name for name in sys.modules if name.split(".")[0] in _NAMES]:
        del sys.modules[name]
    importlib.invalidate_caches()
    flash_attn.function.cache_clear()
    flashinfer.wrapper.cache_clear()
    providers.DENSE.forget()
    providers.PACKED.forget()


def write_packages(folder, packages, cutlass, with_flashinfer):
    """The files of the `packages`, as far as they matter."""
    for place, version in PACKAGES[packages].items():
        lines = ["import attention_stand_ins as kernels"]
        if version.startswith("4"):
            lines.append("import cutlass")  # nvidia-cutlass-dsl's module
        for name in ("flash_attn_func", "flash_attn_varlen_func"):
            lines.append(f"def {name}({SIGNATURES[version, name]}):")
            lines.append(f"    return kernels.{name}({version!r}, locals())")
        path = folder / f"{place}.py" if version.startswith("3") else folder / place / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    if cutlass:
        (folder / "cutlass.py").write_text("")
    if with_flashinfer:
        lines = ["import attention_stand_ins as kernels", "class BatchPrefillWithRaggedKVCacheWrapper:"]
        for name, signature in FLASHINFER.items():
            lines.append(f"    def {name}({signature}):")
            lines.append(f"        return kernels.flashinfer_{name.strip('_')}(self, locals())")
        (folder / "flashinfer").mkdir()
        (folder / "flashinfer/__init__.py").write_text("")
        (folder / "flashinfer/prefill.py").write_text("\n".join(lines))


def exact(query, key, value, *, causal, scale, blind, mask=None):
    """Output in the inputs' dtype, zero for a row that sees nothing, and float32 LSE, `blind` for such a row."""
    out, lse, _, visible = expected(query, key, value, causal=causal, scale=scale, mask=mask)
    return out.to(query.dtype), lse.float().masked_fill(~visible.any(-1), blind)


def exact_packed(query, key, value, bounds_q, bounds_k, *, causal, scale, blind):
    """As `exact` for packed sequences, [total_q, Hq, D] and [Hq, total_q]; what is padding is NaN."""
    out, lse = torch.full_like(query, math.nan), torch.full(query.shape[1::-1], math.nan)
    for (row, end), (first, last) in zip(
        itertools.pairwise(bounds_q.tolist()), itertools.pairwise(bounds_k.tolist()), strict=True
    ):
        if row == end:
            continue
        if first == last:
            out[row:end], lse[:, row:end] = 0.0, blind
            continue
        parts = [
            t[None, a:b].transpose(1, 2) for t, a, b in ((query, row, end), (key, first, last), (value, first, last))
        ]
        own = exact(*parts, causal=causal, scale=scale, blind=blind)
        out[row:end], lse[:, row:end] = own[0][0].transpose(0, 1), own[1][0]
    return out, lse


def _accepts(version, q, given):
    """Fail as the version does on this GPU."""
    major, dim = Machine.capability[0], q.shape[-1]
    assert given.get("dropout_p", 0.0) == 0.0
    if version == "2" and (major < 8 or dim % 8 or dim > 256):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
    if version.startswith("3") and major != 9:
        raise RuntimeError("FlashAttention 3 only supports Hopper GPUs or newer.")
    if version == "4":
        assert major in (8, 9, 10, 11, 12), "Unsupported compute capability"
        if major in (10, 11):
            assert dim <= 128 or dim == 256, "(head_dim, head_dim_v) is not supported on SM100/SM110"
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")


def _returns(version, given, out, lse):
    Machine.ran.append(f"flash_attn_{version}")
    Machine.arguments.append(given)
    if version == "2":
        return (out, lse, None) if given["return_attn_probs"] else out
    if version == "3":
        return (out, lse) if given["return_attn_probs"] else out
    if version == "4":
        return out, lse if given["return_lse"] else None
    return out if version == "3 old" else (out, None)


def flash_attn_func(version, given):
    q, k, v = (given[name] for name in "qkv")
    _accepts(version, q, given)
    blind = math.inf if version == "2" else -math.inf
    out, lse = exact(
        *(t.transpose(1, 2) for t in (q, k, v)), causal=given["causal"], scale=given["softmax_scale"], blind=blind
    )
    return _returns(version, given, out.transpose(1, 2), lse)


def flash_attn_varlen_func(version, given):
    q, k, v = (given[name] for name in "qkv")
    _accepts(version, q, given)
    bounds = given["cu_seqlens_q"], given["cu_seqlens_k"]
    for bound, longest in zip(bounds, (given["max_seqlen_q"], given["max_seqlen_k"]), strict=True):
        assert bound.dtype == torch.int32
        assert int(bound.diff().max()) <= longest
    blind = math.inf if version == "2" else -math.inf
    return _returns(
        version,
        given,
        *exact_packed(q, k, v, *bounds, causal=given["causal"], scale=given["softmax_scale"], blind=blind),
    )


def flashinfer_init(wrapper, given):
    assert given["kv_layout"] == "NHD"
    assert given["float_workspace_buffer"].numel() >= 128 << 20


def flashinfer_plan(wrapper, given):
    wrapper.planned = given
    assert given["qo_indptr"].dtype == given["kv_indptr"].dtype == torch.int32


def flashinfer_run(wrapper, given):
    q, k, v = (given[name] for name in "qkv")
    plan = wrapper.planned
    if len(q) != int(plan["qo_indptr"][-1]):
        raise ValueError("q.shape[0] does not match qo_indptr[-1]")
    assert (q.dtype, *q.shape[1:]) == (plan["q_data_type"], plan["num_qo_heads"], plan["head_dim_qk"])
    assert k.shape[1] == plan["num_kv_heads"]
    Machine.ran.append("flashinfer")
    out, lse = exact_packed(
        q, k, v, plan["qo_indptr"], plan["kv_indptr"], causal=plan["causal"], scale=plan["sm_scale"], blind=-5e4
    )
    lse = (lse if given["lse_base"] == "ln" else lse / math.log(2)).clone()
    return (out, lse if given["lse_layout"] == "HN" else lse.T) if given["return_lse"] else out


def _on_meta(name, args, kwargs):
    """Check arguments by the real operator's schema; returns the shapes of its output and LSE."""
    meta = lambda value: value.to("meta") if isinstance(value, torch.Tensor) else value  # noqa: E731
    out, lse, *_ = _REAL[name](*map(meta, args), **{key: meta(value) for key, value in kwargs.items()})
    Machine.ran.append(name)
    Machine.arguments.append(args)
    return out.shape, lse.shape


def _scaled_dot_product_flash_attention(*args, **kwargs):
    shapes = _on_meta("_scaled_dot_product_flash_attention", args, kwargs)
    query, key, value, dropout, causal, debug = args
    assert Machine.capability >= (8, 0)
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert query.shape[-1] % 8 == 0
    assert query.shape[-1] <= 256
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    assert not dropout
    assert not debug
    result = exact(query, key, value, causal=causal, scale=kwargs["scale"], blind=math.inf)
    assert tuple(t.shape for t in result) == shapes
    return *result, *[None] * 7


def _efficient_attention_forward(*args, **kwargs):
    out_shape, lse_shape = _on_meta("_efficient_attention_forward", args, kwargs)
    query, key, value, bias, *bounds, dropout, mask_type, wants_lse = args
    alignment = 16 // query.dtype.itemsize
    assert query.dtype != torch.bfloat16 or Machine.capability >= (8, 0)
    assert query.shape[2] == key.shape[2] == value.shape[2], "as many query heads as key heads"
    for tensor in (query, key, value):
        assert tensor.stride(3) == 1
        assert tensor.stride(1) % alignment == 0
        assert tensor.stride(2) % alignment == 0
    assert bounds == [None] * 4
    assert not dropout
    assert wants_lse
    mask = None
    if bias is not None:
        assert bias.dtype == query.dtype
        assert bias.shape == (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
        assert bias.stride(3) == 1
        assert all(
            size == 1 or step % alignment == 0 for size, step in zip(bias.shape[:3], bias.stride(), strict=False)
        )
        assert bias.data_ptr() % 16 == 0
        assert ((bias == 0) | (bias == -math.inf)).all()
        mask = bias == 0
    out, lse = exact(
        *(t.transpose(1, 2) for t in (query, key, value)),
        causal=mask_type == 2,
        scale=kwargs["scale"],
        mask=mask,
        blind=0.0,
    )
    assert mask_type in (0, 2)
    padded = torch.full(lse_shape, math.inf)
    padded[:, :, : query.shape[1]] = lse
    assert out.transpose(1, 2).shape == out_shape
    # Where there is no block of keys to go through, nothing is written.
    out = out.masked_fill((lse == 0)[..., None], math.nan)
    return out.transpose(1, 2), padded, None, None, query.shape[1], key.shape[1]


def _scaled_dot_product_cudnn_attention(*args, **kwargs):
    out_shape, lse_shape = _on_meta("_scaled_dot_product_cudnn_attention", args, kwargs)
    query, key, value, bias, wants_lse, dropout, causal, debug = args
    rows, columns = query.shape[2], key.shape[2]
    assert rows == columns or not causal
    assert not dropout
    assert not debug
    assert wants_lse
    mask = None
    if bias is not None:
        assert bias.dtype == query.dtype
        assert bias.shape[0] == query.shape[0]
        assert bias.shape[1] in (1, query.shape[1])
        assert bias.shape[2:] == (rows, columns)
        mask = bias == 0
    out, lse = exact(query, key, value, causal=causal, scale=kwargs["scale"], mask=mask, blind=math.nan)
    assert out.shape == out_shape
    return out.masked_fill(lse.isnan()[..., None], math.nan), lse.reshape(lse_shape), *[None] * 7


def _flash_attention_forward(*args, **kwargs):
    shapes = _on_meta("_flash_attention_forward", args, kwargs)
    query, key, value, bounds_q, bounds_k, longest_q, longest_k, dropout, causal, debug = args
    assert Machine.capability >= (8, 0)
    assert bounds_q.dtype == bounds_k.dtype == torch.int32
    assert int(bounds_q.diff().max()) <= longest_q
    assert int(bounds_k.diff().max()) <= longest_k
    assert not dropout
    assert not debug
    result = exact_packed(query, key, value, bounds_q, bounds_k, causal=causal, scale=kwargs["scale"], blind=math.inf)
    assert tuple(t.shape for t in result) == shapes
    return *result, None, None, None

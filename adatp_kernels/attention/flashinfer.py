"""FlashInfer's ragged prefill as a provider of packed calls.

Its wrapper plans on the host, which waits for the device, and works in 128 MiB of its own; both are paid on every call here. An
engine that plans once a step and runs every layer calls the wrapper itself, with ``return_lse=True, lse_base="ln",
lse_layout="HN"``: that is the LSE `ops.column_sums_varlen` takes. Arguments as in the sources of flashinfer-python 0.7.2
(``tests/real_providers.py`` compares); it has not run here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adatp_kernels.attention.call import HALF, Kind, PackedCall, check_result
from adatp_kernels.attention.reference import NEG_INF

_HEAD_DIMS = (64, 128, 256)
_WORKSPACE = 128 << 20  # bytes, as its documentation advises


def refuses(kind: Kind) -> str | None:
    """Why FlashInfer cannot run packed sequences of this kind."""
    if kind.device != "cuda":
        return f"it needs a CUDA device, not {kind.device}"
    least = (8, 0) if kind.dtype == torch.bfloat16 else (7, 5)
    if kind.capability < least:
        return f"for {kind.dtype} it needs a GPU of compute capability {least}, not {kind.capability}"
    if kind.dtype not in HALF:
        return f"it takes float16 and bfloat16, not {kind.dtype}"
    if kind.head_dim not in _HEAD_DIMS:
        return f"the head dim must be one of {list(_HEAD_DIMS)}, not {kind.head_dim}"
    found = wrapper()  # last, for it imports
    return found if isinstance(found, str) else None


@functools.cache
def wrapper() -> Any:
    """The class that plans and runs, or a str that says why there is none."""
    try:
        found = importlib.import_module("flashinfer.prefill").BatchPrefillWithRaggedKVCacheWrapper
        parameters = inspect.signature(found.run).parameters
    except Exception as error:  # whatever an import may raise
        if isinstance(error, ModuleNotFoundError) and error.name == "flashinfer":
            return "the module flashinfer is not installed"
        return f"the module flashinfer.prefill cannot be imported: {type(error).__name__}: {error}"
    if not {"lse_base", "lse_layout"} <= parameters.keys():
        return "the module flashinfer is older than 0.7.2: it has no natural-log LSE"
    return found


def run_packed(call: PackedCall) -> tuple[Tensor, Tensor]:
    """Plan, and run."""
    query, key, value = call.query, call.key, call.value
    bounds = [cumulative.cpu() for cumulative in (call.cu_seqlens_q, call.cu_seqlens_k)]
    rows, keys = (int(bound[-1]) for bound in bounds)
    with torch.cuda.device_of(query):
        workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=query.device)
        planned = wrapper()(workspace, "NHD")
        planned.plan(
            *bounds, query.shape[1], key.shape[1], query.shape[2], causal=call.causal, sm_scale=call.scale,
            q_data_type=query.dtype,
        )  # fmt: skip
        out, lse = planned.run(
            query[:rows], key[:keys], value[:keys], return_lse=True, lse_base="ln", lse_layout="HN"
        )  # [rows, Hq, D], [Hq, rows]
    check_result(out, lse, query[:rows].shape, (query.shape[1], rows))
    for row, seen in _blind_rows(*bounds, causal=call.causal):
        out[row:seen], lse[:, row:seen] = 0.0, NEG_INF
    padding = len(query) - rows
    return F.pad(out, (0, 0, 0, 0, 0, padding)), F.pad(lse, (0, padding), value=NEG_INF)


def _blind_rows(rows: Tensor, keys: Tensor, *, causal: bool) -> list[tuple[int, int]]:
    """Of each sequence the rows that see nothing: all without a key, and those before its first key."""
    blind = []
    for (row, end), (first, last) in zip(
        itertools.pairwise(rows.tolist()), itertools.pairwise(keys.tolist()), strict=True
    ):
        seen = end if first == last else max(row, end - (last - first)) if causal else row
        if seen > row:
            blind.append((row, seen))
    return blind

"""The log-sum-exp of text rows over all the keys they see, as a Triton kernel: for attention that does not return it.

The keys are split so that a few text rows fill the chip; the partial results are put together by whoever reads them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.operands import LN_2, LOG2_E, load_keys, load_rows, precision
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.tiles import ceil_div, num_splits, power_of_two, row_tile, tile_for


@triton.jit
def _next_keys(
    b_max, b_sum, b_q, last_seen, key, key_mask, start, end, scale_log2, stride_kn, stride_kd, stride_mn,
    CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The running maximum and sum [BM] after the keys from `start` on; without CAUSAL all BLOCK_N of them are in sight."""
    o_n = start + tl.arange(0, BLOCK_N)
    m_n = o_n < (end if CAUSAL else start + BLOCK_N)
    b_k = load_keys(key, o_n, m_n, stride_kn, stride_kd, HEAD_DIM, BLOCK_D, PRECISION)  # [BN, D]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
    if HAS_KEY_MASK:
        m_n = m_n & (tl.load(key_mask + o_n.to(tl.int64) * stride_mn, mask=m_n, other=0) != 0)
    if CAUSAL:
        b_s = tl.where(m_n[None, :] & (o_n[None, :] <= last_seen[:, None]), b_s, float("-inf"))
    elif HAS_KEY_MASK:
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
    new_max = tl.maximum(b_max, tl.max(b_s, 1))
    # A row that has seen nothing yet has a maximum of −inf; −inf − (−inf) must not become NaN.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    return new_max, b_sum * tl.exp2(b_max - shift) + tl.sum(tl.exp2(b_s - shift[:, None]), 1)


@triton.jit
def lse_over_keys(
    b_q, query_start, o_t, key, key_mask, first, end, scale_log2, stride_kn, stride_kd, stride_mn,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Natural-log LSE [BM] of the rows `b_q` [BM, D] over one head's keys ``[first, end)``; −inf for a row that sees none.

    The query tile stays on chip; the keys stream past it under a running maximum and sum, in base 2. Only the last tiles,
    from `query_start` on, may hold keys that a row does not see.
    """
    last_seen = query_start + o_t
    b_max = tl.full(o_t.shape, float("-inf"), tl.float32)
    b_sum = tl.zeros(o_t.shape, tl.float32)
    whole = first + tl.maximum(tl.minimum(end, query_start + 1) - first, 0) // BLOCK_N * BLOCK_N
    for start in range(first, whole, BLOCK_N):
        b_max, b_sum = _next_keys(
            b_max, b_sum, b_q, last_seen, key, key_mask, start, end, scale_log2, stride_kn, stride_kd, stride_mn,
            False, HEAD_DIM, BLOCK_D, BLOCK_N, HAS_KEY_MASK, PRECISION,
        )  # fmt: skip
    for start in range(whole, end, BLOCK_N):
        b_max, b_sum = _next_keys(
            b_max, b_sum, b_q, last_seen, key, key_mask, start, end, scale_log2, stride_kn, stride_kd, stride_mn,
            True, HEAD_DIM, BLOCK_D, BLOCK_N, HAS_KEY_MASK, PRECISION,
        )  # fmt: skip
    return tl.where(b_sum == 0.0, float("-inf"), b_max + tl.log2(b_sum)) * LN_2


@triton.jit(
    do_not_specialize=["rows", "num_keys", "split_length", "query_start", "scale_log2", "stride_mb"],
    do_not_specialize_on_alignment=["key_mask"],
)
def _row_lse_kernel(
    query, key, key_mask, partial,
    rows, kv_heads, num_keys, split_length, query_start, scale_log2,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_mb, stride_mn,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_KEY_MASK: tl.constexpr, PRECISION: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """LSE of one tile of rows over one split of the keys; grid (row tiles, splits, B·Hkv).

    Whoever reads `partial` [splits, B, Hq, T] (natural logarithm) puts the splits together.
    """
    begin(FOLLOWS, SIGNALS)
    batch = (tl.program_id(2) // kv_heads).to(tl.int64)
    head = tl.program_id(2) % kv_heads
    row_tiles = tl.cdiv(rows, BLOCK_T)
    o_r = tl.arange(0, BLOCK_H * BLOCK_T)
    o_h = tl.program_id(0) // row_tiles * BLOCK_H + o_r // BLOCK_T
    o_t = tl.program_id(0) % row_tiles * BLOCK_T + o_r % BLOCK_T
    m_r = (o_h < GROUP) & (o_t < rows)
    b_q = load_rows(
        query + batch * stride_qb + (head * GROUP).to(tl.int64) * stride_qh,
        o_h,
        o_t,
        m_r,
        stride_qh,
        stride_qt,
        stride_qd,
        HEAD_DIM,
        BLOCK_D,
        PRECISION,
    )  # [BM, D]
    first = tl.program_id(1) * split_length
    # No row sees beyond the last one's own key.
    end = tl.minimum(tl.minimum(first + split_length, num_keys), query_start + rows)
    b_lse = lse_over_keys(
        b_q, query_start, o_t, key + batch * stride_kb + head.to(tl.int64) * stride_kh, key_mask + batch * stride_mb,
        first, end, scale_log2, stride_kn, stride_kd, stride_mn, HEAD_DIM, BLOCK_D, BLOCK_N, HAS_KEY_MASK, PRECISION,
    )  # fmt: skip
    group = (tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * GROUP
    tl.store(partial + (group + o_h) * rows + o_t, b_lse, mask=m_r)


_launch = Launcher(_row_lse_kernel)


def partial_row_lse(
    query: Tensor, key: Tensor, *, query_start: int, scale: float, key_mask: Tensor | None
) -> tuple[Tensor, int]:
    """LSE of every row over each split of the keys, [splits, B, Hq, T] natural logarithm; one launch.

    Also the most splits that there may be whatever the number of keys: a power of two.
    """
    batch, query_heads, rows, dim = query.shape
    kv_heads, num_keys = key.shape[1], key.shape[2]
    group = query_heads // kv_heads
    query_start = min(query_start, num_keys)  # beyond, it says no more, and might not fit 32 bits
    tile = tile_for(query.device, query.dtype, dim)
    heads, text = row_tile(tile, group, rows)
    tiles, visible = ceil_div(group, heads) * ceil_div(rows, text), min(num_keys, query_start + rows)
    # Without the batch, so that a prompt's bits do not depend on the company it is in.
    splits, most = num_splits(tiles * kv_heads, visible, tile.columns)
    split_length = ceil_div(ceil_div(visible, splits), tile.columns) * tile.columns
    partial = torch.empty(splits, batch, query_heads, rows, dtype=torch.float32, device=query.device)
    mask = key if key_mask is None else key_mask.view(torch.uint8)
    _launch(
        (tiles, splits, batch * kv_heads),
        (query, key, mask, partial),
        (
            rows, kv_heads, num_keys, split_length, query_start, scale * LOG2_E.value,
            *query.stride(), *key.stride(), *((0, 0) if key_mask is None else mask.stride()),
        ),
        {
            "GROUP": group, "HEAD_DIM": dim, "BLOCK_D": max(16, power_of_two(dim)), "BLOCK_H": heads, "BLOCK_T": text,
            "BLOCK_N": tile.columns, "HAS_KEY_MASK": key_mask is not None, "PRECISION": precision(query.dtype),
            **overlapping(query.device, follows=False),
        },
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial, most


def row_lse(query: Tensor, key: Tensor, *, query_start: int, scale: float, key_mask: Tensor | None) -> Tensor:
    """As `functional.row_lse`."""
    partial, _ = partial_row_lse(query, key, query_start=query_start, scale=scale, key_mask=key_mask)
    return partial[0] if len(partial) == 1 else partial.logsumexp(0)

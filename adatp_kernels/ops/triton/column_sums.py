"""Text-to-visual column sums, and the row LSE they need, as Triton kernels.

The query heads that share a key head, times the text rows, are the rows of one matrix product ("packed
rows", row r is head ``r // T`` of the group and text row ``r % T``): keys are never repeated, a key tile
is read once per key head, and the map of rows × columns never leaves the chip.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.triton.tiles import ceil_div, num_splits, power_of_two, tile_for

LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    query, row, rows, first_head, in_range, stride_h, stride_t, stride_d,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The packed rows `row` [BM] of one key head's group, as [BM, BLOCK_D]; zeros beyond the last row."""
    offset = (first_head + row // rows).to(tl.int64) * stride_h + (row % rows).to(tl.int64) * stride_t
    o_d = tl.arange(0, BLOCK_D)
    mask = in_range[:, None] & (o_d < HEAD_DIM)[None, :]
    return tl.load(query + offset[:, None] + o_d[None, :] * stride_d, mask=mask, other=0.0)


@triton.jit
def load_keys(key, column, in_range, stride_n, stride_d, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The keys `column` [BN] of one head, as [BN, BLOCK_D]; zeros where out of range."""
    o_d = tl.arange(0, BLOCK_D)
    mask = in_range[:, None] & (o_d < HEAD_DIM)[None, :]
    return tl.load(key + column.to(tl.int64)[:, None] * stride_n + o_d[None, :] * stride_d, mask=mask, other=0.0)


@triton.jit
def lse_over_keys(
    b_q, last_seen, key, key_mask, first, end, scale_log2, stride_kn, stride_kd, stride_mn,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Natural-log LSE [BM] of the rows `b_q` [BM, D] over one head's keys ``[first, end)``; −inf for a row that sees none.

    The query tile stays on chip; the keys stream past it under a running maximum and sum, in base 2.
    """
    b_max = tl.full(last_seen.shape, float("-inf"), tl.float32)
    b_sum = tl.zeros(last_seen.shape, tl.float32)
    for start in range(first, end, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        b_k = load_keys(key, o_n, m_n, stride_kn, stride_kd, HEAD_DIM, BLOCK_D)  # [BN, D]
        if HAS_KEY_MASK:
            m_n = m_n & (tl.load(key_mask + o_n.to(tl.int64) * stride_mn, mask=m_n, other=0) != 0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale_log2  # [BM, BN]
        b_s = tl.where(m_n[None, :] & (o_n[None, :] <= last_seen[:, None]), b_s, float("-inf"))
        new_max = tl.maximum(b_max, tl.max(b_s, 1))
        # A row that has seen nothing yet has a maximum of −inf; −inf − (−inf) must not become NaN.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        b_sum = b_sum * tl.exp2(b_max - shift) + tl.sum(tl.exp2(b_s - shift[:, None]), 1)
        b_max = new_max
    return tl.where(b_sum == 0.0, float("-inf"), b_max + tl.log2(b_sum)) * _LN_2


@triton.jit(do_not_specialize=["rows", "packed_rows", "num_keys", "split_length", "query_start", "stride_mb"])
def _row_lse_kernel(
    query, key, key_mask, partial,
    rows, packed_rows, kv_heads, num_keys, split_length, query_start, scale_log2,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_mb, stride_mn,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """LSE of BLOCK_M packed rows over one split of the keys; grid (row blocks, splits, B·Hkv).

    Whoever reads `partial` [B, Hkv, G·T, splits] (natural logarithm) puts the splits together.
    """
    batch = (tl.program_id(2) // kv_heads).to(tl.int64)
    head = tl.program_id(2) % kv_heads
    o_r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_r = o_r < packed_rows
    b_q = load_rows(
        query + batch * stride_qb, o_r, rows, head * GROUP, m_r, stride_qh, stride_qt, stride_qd, HEAD_DIM, BLOCK_D
    )  # [BM, D]
    first = tl.program_id(1) * split_length
    # No row sees beyond the last one's own key.
    end = tl.minimum(tl.minimum(first + split_length, num_keys), query_start + rows)
    b_lse = lse_over_keys(
        b_q, query_start + o_r % rows, key + batch * stride_kb + head.to(tl.int64) * stride_kh, key_mask + batch * stride_mb,
        first, end, scale_log2, stride_kn, stride_kd, stride_mn, HEAD_DIM, BLOCK_D, BLOCK_N, HAS_KEY_MASK, PRECISION,
    )  # fmt: skip
    offset = tl.program_id(2).to(tl.int64) * packed_rows + o_r
    tl.store(partial + offset * tl.num_programs(1) + tl.program_id(1), b_lse, mask=m_r)


@triton.jit
def _load_lse(lse, row, rows, first_head, in_range, stride_h, stride_t, stride_s, splits):
    """The packed rows' LSE [BM] in base 2, put together from `splits` partial ones; −inf out of range."""
    offset = (first_head + row // rows).to(tl.int64) * stride_h + (row % rows).to(tl.int64) * stride_t
    b_lse = tl.load(lse + offset, mask=in_range, other=float("-inf")).to(tl.float32) * LOG2_E
    if splits > 1:
        b_max = b_lse
        for split in range(1, splits):
            b_part = (
                tl.load(lse + offset + split * stride_s, mask=in_range, other=float("-inf")).to(tl.float32) * LOG2_E
            )
            b_max = tl.maximum(b_max, b_part)
        shift = tl.where(b_max == float("-inf"), 0.0, b_max)
        b_sum = tl.exp2(b_lse - shift)
        for split in range(1, splits):
            b_part = (
                tl.load(lse + offset + split * stride_s, mask=in_range, other=float("-inf")).to(tl.float32) * LOG2_E
            )
            b_sum += tl.exp2(b_part - shift)
        b_lse = tl.where(b_sum == 0.0, float("-inf"), shift + tl.log2(b_sum))
    return b_lse


@triton.jit
def probability_sums(
    b_k, o_n, m_n, query, lse, query_mask, rows, packed_rows, first_head, query_start, scale_log2,
    stride_qh, stride_qt, stride_qd, stride_lh, stride_lt, stride_ls, splits, stride_rt,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_QUERY_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax probabilities of the columns `o_n` [BN], whose keys are `b_k`, summed over one key head's packed rows.

    The key tile stays on chip; the packed rows stream past it. Probabilities live in registers and are summed
    there: over a block's rows by the reduction of `tl.sum`, over the blocks in order.
    """
    b_sum = tl.zeros(o_n.shape, tl.float32)
    for start in range(0, packed_rows, BLOCK_M):
        o_r = start + tl.arange(0, BLOCK_M)
        m_r = o_r < packed_rows
        b_q = load_rows(query, o_r, rows, first_head, m_r, stride_qh, stride_qt, stride_qd, HEAD_DIM, BLOCK_D)
        b_lse = _load_lse(lse, o_r, rows, first_head, m_r, stride_lh, stride_lt, stride_ls, splits)  # [BM]
        m_r = m_r & (b_lse != float("-inf"))  # a row that sees nothing contributes nothing
        if HAS_QUERY_MASK:
            m_r = m_r & (tl.load(query_mask + (o_r % rows).to(tl.int64) * stride_rt, mask=m_r, other=0) != 0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * scale_log2  # [BN, BM]
        seen = m_n[:, None] & m_r[None, :] & (o_n[:, None] <= (query_start + o_r % rows)[None, :])
        b_sum += tl.sum(tl.where(seen, tl.exp2(b_s - b_lse[None, :]), 0.0), 1)
    return b_sum


# What changes from stage to stage, or prompt to prompt, must not make the compiler specialise again.
@triton.jit(
    do_not_specialize=[
        "rows", "packed_rows", "first_column", "num_columns", "query_start", "workspace_words",
        "stride_lb", "stride_lh", "stride_lt", "stride_ls", "splits", "stride_mb", "stride_rb",
    ],
    do_not_specialize_on_alignment=["lse"],
)  # fmt: skip
def _column_sums_kernel(
    query, key, lse, key_mask, query_mask, partial, workspace,
    rows, packed_rows, kv_heads, first_column, num_columns, query_start, scale_log2, workspace_words,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_lb, stride_lh, stride_lt, stride_ls, splits,
    stride_mb, stride_mn, stride_rb, stride_rt,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_WORKSPACE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax probabilities of BLOCK_N columns summed over one key head's packed rows; grid (column blocks, Hkv, B).

    Each key tile is read once. One partial sum per key head and column goes to `partial` [B, Hkv, columns].
    Beside, the programs zero the `workspace` of the kernel that selects next, which saves a launch.
    """
    if HAS_WORKSPACE:
        programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
        program = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))
        for start in range(program * 256, workspace_words, programs * 256):
            o_w = start + tl.arange(0, 256)
            tl.store(workspace + o_w, tl.zeros((256,), tl.int64), mask=o_w < workspace_words)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_c = o_c < num_columns
    o_n = first_column + o_c
    b_k = load_keys(
        key + batch * stride_kb + head.to(tl.int64) * stride_kh, o_n, m_c, stride_kn, stride_kd, HEAD_DIM, BLOCK_D
    )  # [BN, D]
    m_n = m_c
    if HAS_KEY_MASK:
        m_n = m_n & (tl.load(key_mask + batch * stride_mb + o_n.to(tl.int64) * stride_mn, mask=m_c, other=0) != 0)
    b_sum = probability_sums(
        b_k, o_n, m_n, query + batch * stride_qb, lse + batch * stride_lb, query_mask + batch * stride_rb,
        rows, packed_rows, head * GROUP, query_start, scale_log2,
        stride_qh, stride_qt, stride_qd, stride_lh, stride_lt, stride_ls, splits, stride_rt,
        HEAD_DIM, BLOCK_D, BLOCK_M, HAS_QUERY_MASK, PRECISION,
    )  # fmt: skip
    tl.store(partial + (batch * kv_heads + head) * num_columns + o_c, b_sum, mask=m_c)


@triton.jit
def mean_of_partials(
    partial, query_mask, batch, column, in_range,
    num_columns, kv_heads, rows, group, stride_rb, stride_rt,
    HAS_QUERY_MASK: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The mean over heads and rows of the columns [BN], from their per-key-head sums, added in the heads' order."""
    b_sum = tl.zeros(column.shape, tl.float32)
    for head in range(kv_heads):
        b_sum += tl.load(partial + (batch * kv_heads + head) * num_columns + column, mask=in_range, other=0.0)
    counted = rows
    if HAS_QUERY_MASK:
        counted = 0
        for start in range(0, rows, BLOCK_T):
            o_t = start + tl.arange(0, BLOCK_T)
            in_mask = tl.load(query_mask + batch * stride_rb + o_t.to(tl.int64) * stride_rt, mask=o_t < rows, other=0)
            counted += tl.sum((in_mask != 0).to(tl.int32), 0)
    return b_sum / (tl.maximum(counted, 1) * kv_heads * group).to(tl.float32)


@triton.jit(do_not_specialize=["num_columns", "rows", "stride_rb"])
def _mean_kernel(
    partial, query_mask, scores,
    num_columns, kv_heads, rows, group, stride_rb, stride_rt,
    HAS_QUERY_MASK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores [B, columns] from the per-key-head sums; grid (column blocks, B)."""
    batch = tl.program_id(1).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_c = o_c < num_columns
    b_mean = mean_of_partials(
        partial, query_mask, batch, o_c, m_c, num_columns, kv_heads, rows, group, stride_rb, stride_rt, HAS_QUERY_MASK, 64
    )  # fmt: skip
    tl.store(scores + batch * num_columns + o_c, b_mean, mask=m_c)


def precision(dtype: torch.dtype) -> str:
    """float32 keys are multiplied in float32, not in the matrix units' tf32, which is off by 3e-4."""
    return "ieee" if dtype == torch.float32 else "tf32"


def partial_row_lse(query: Tensor, key: Tensor, *, query_start: int, scale: float, key_mask: Tensor | None) -> Tensor:
    """LSE of every row over each split of the keys, [B, Hq, T, splits] natural logarithm; one launch."""
    batch, query_heads, rows, dim = query.shape
    kv_heads, num_keys = key.shape[1], key.shape[2]
    group = query_heads // kv_heads
    query_start = min(query_start, num_keys)  # beyond, it says no more, and might not fit 32 bits
    tile = tile_for(query, rows * group)
    # Without the batch, so that a prompt's bits do not depend on the company it is in.
    blocks = ceil_div(rows * group, tile.rows) * kv_heads
    splits = num_splits(blocks, min(num_keys, query_start + rows), tile.columns)
    split_length = ceil_div(ceil_div(min(num_keys, query_start + rows), splits), tile.columns) * tile.columns
    partial = torch.empty(batch, query_heads, rows, splits, dtype=torch.float32, device=query.device)
    mask = key if key_mask is None else key_mask.view(torch.uint8)
    _row_lse_kernel[(ceil_div(rows * group, tile.rows), splits, batch * kv_heads)](
        query, key, mask, partial,
        rows, rows * group, kv_heads, num_keys, split_length, query_start, scale * LOG2_E.value,
        *query.stride(), *key.stride(), *((0, 0) if key_mask is None else mask.stride()),
        GROUP=group, HEAD_DIM=dim, BLOCK_D=max(16, power_of_two(dim)), BLOCK_M=tile.rows, BLOCK_N=tile.columns,
        HAS_KEY_MASK=key_mask is not None, PRECISION=precision(query.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial


def partial_column_sums(
    query: Tensor,
    key: Tensor,
    *,
    query_start: int,
    key_range: tuple[int, int],
    scale: float,
    lse: Tensor | None,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    workspace: Tensor | None = None,
) -> Tensor:
    """Probabilities of each column summed over each key head's rows, [B, Hkv, v1-v0] float32.

    One launch, or two if the LSE is not given: then the keys are read twice, the second time from the L2
    cache, which holds a layer's keys up to some tens of thousands of tokens. Reading them once would mean
    to keep every tile on chip until all programs have met, and so a grid no larger than the chip.
    A `workspace`, if given, is zeroed on the way.
    """
    batch, query_heads, rows, dim = query.shape
    kv_heads, (first, last) = key.shape[1], key_range
    group = query_heads // kv_heads
    query_start = min(query_start, key.shape[2])
    splits = (
        partial_row_lse(query, key, query_start=query_start, scale=scale, key_mask=key_mask)
        if lse is None
        else lse[..., None]
    )
    tile = tile_for(query, rows * group)
    partial = torch.empty(batch, kv_heads, last - first, dtype=torch.float32, device=query.device)
    masks = [key if mask is None else mask.view(torch.uint8) for mask in (key_mask, query_mask)]
    _column_sums_kernel[(ceil_div(last - first, tile.columns), kv_heads, batch)](
        query, key, splits, *masks, partial, partial if workspace is None else workspace,
        rows, rows * group, kv_heads, first, last - first, query_start, scale * LOG2_E.value,
        0 if workspace is None else workspace.numel(),
        *query.stride(), *key.stride(), *splits.stride(), splits.shape[3],
        *((0, 0) if key_mask is None else key_mask.stride()), *((0, 0) if query_mask is None else query_mask.stride()),
        GROUP=group, HEAD_DIM=dim, BLOCK_D=max(16, power_of_two(dim)), BLOCK_M=tile.rows, BLOCK_N=tile.columns,
        HAS_KEY_MASK=key_mask is not None, HAS_QUERY_MASK=query_mask is not None,
        HAS_WORKSPACE=workspace is not None, PRECISION=precision(query.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial


def row_lse(query: Tensor, key: Tensor, *, query_start: int, scale: float, key_mask: Tensor | None) -> Tensor:
    """As `functional.row_lse`."""
    partial = partial_row_lse(query, key, query_start=query_start, scale=scale, key_mask=key_mask)
    return partial[..., 0] if partial.shape[3] == 1 else partial.logsumexp(-1)


def column_sums(query: Tensor, key: Tensor, *, query_mask: Tensor | None, **options: Any) -> Tensor:
    """As `functional.column_sums`: the partial sums, and one more launch for their mean."""
    partial = partial_column_sums(query, key, query_mask=query_mask, **options)
    batch, kv_heads, columns = partial.shape
    scores = torch.empty(batch, columns, dtype=torch.float32, device=query.device)
    mask = partial if query_mask is None else query_mask.view(torch.uint8)
    _mean_kernel[(ceil_div(columns, 256), batch)](
        partial, mask, scores,
        columns, kv_heads, query.shape[2], query.shape[1] // kv_heads, *((0, 0) if query_mask is None else mask.stride()),
        HAS_QUERY_MASK=query_mask is not None, BLOCK_N=256,
    )  # fmt: skip
    return scores

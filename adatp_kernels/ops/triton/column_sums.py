"""Text-to-visual column sums as Triton kernels.

The query heads that share a key head, times the text rows, are the rows of one matrix product: keys are never repeated, a
key tile is read once per key head, and the map of rows × columns never leaves the chip. A tile of rows is BLOCK_H heads ×
BLOCK_T text rows, both powers of two, so the loop over tiles divides nothing but two scalars: a row's place within the tile
is always the same.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.arguments import Scoring
from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.operands import LOG2_E, load_keys, load_rows, precision
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.row_lse import partial_row_lse
from adatp_kernels.ops.triton.tiles import Tile, ceil_div, power_of_two, row_tile, tile_for


@triton.jit
def _minus_lse(lse, m_r, stride_s, splits, SPLITS: tl.constexpr):
    """Minus the rows' LSE [BM] in base 2, put together from `splits` partial ones; −inf, which hides a row that sees nothing."""
    if SPLITS == 1:
        b_minus = tl.load(lse, mask=m_r, other=float("inf")).to(tl.float32) * -LOG2_E
    else:
        o_s = tl.arange(0, SPLITS)[:, None]
        b_part = tl.load(lse[None, :] + o_s * stride_s, mask=m_r[None, :] & (o_s < splits), other=float("-inf"))
        b_part = b_part.to(tl.float32) * LOG2_E  # [SPLITS, BM]
        b_max = tl.max(b_part, 0)
        shift = tl.where(b_max == float("-inf"), 0.0, b_max)
        b_minus = -shift - tl.log2(tl.sum(tl.exp2(b_part - shift[None, :]), 0))
    return tl.where(b_minus == float("inf"), float("-inf"), b_minus)


@triton.jit
def probability_sums(
    b_k, o_n, last_column, query, lse, query_mask, rows, query_start, scale_log2,
    stride_qh, stride_qt, stride_qd, stride_lh, stride_lt, stride_ls, splits, stride_rt,
    CAUSAL: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
    HAS_QUERY_MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax probabilities of the columns `o_n` [BN], whose keys are `b_k`, summed over one key head's rows.

    The key tile stays on chip; tiles of rows stream past it. Probabilities live in registers and are summed
    there: over the tiles in order, and over a tile's rows at the end. A row that does not count is
    hidden by an LSE of +inf; rows are compared with columns, the last of which is `last_column`, only where CAUSAL says that
    one of them may not be seen.
    """
    row_tiles = tl.cdiv(rows, BLOCK_T)
    o_r = tl.arange(0, BLOCK_H * BLOCK_T)
    o_h, o_t = o_r // BLOCK_T, o_r % BLOCK_T
    o_lse = o_h.to(tl.int64) * stride_lh + o_t.to(tl.int64) * stride_lt
    b_sum = tl.zeros((BLOCK_H * BLOCK_T, BLOCK_N), tl.float32)
    for tile in range(0, (GROUP + BLOCK_H - 1) // BLOCK_H * row_tiles):
        h = tile // row_tiles
        t = (tile - h * row_tiles) * BLOCK_T
        h = h * BLOCK_H
        m_r = o_t < rows - t
        if GROUP % BLOCK_H:
            m_r = m_r & (o_h < GROUP - h)
        if HAS_QUERY_MASK:
            m_r = m_r & (tl.load(query_mask + (t + o_t).to(tl.int64) * stride_rt, mask=m_r, other=0) != 0)
        first = h.to(tl.int64) * stride_qh + t.to(tl.int64) * stride_qt
        b_q = load_rows(query + first, o_h, o_t, m_r, stride_qh, stride_qt, stride_qd, HEAD_DIM, BLOCK_D, PRECISION)
        first = h.to(tl.int64) * stride_lh + t.to(tl.int64) * stride_lt
        b_minus = _minus_lse(lse + first + o_lse, m_r, stride_ls, splits, SPLITS)  # [BM]
        if BLOCK_H * BLOCK_T >= 64:
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        else:  # the matrix units want 64 of what comes first
            b_s = tl.trans(tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION))
        b_p = tl.exp2(tl.fma(b_s, scale_log2, b_minus[:, None]))
        hides = t + BLOCK_T > rows
        if GROUP % BLOCK_H:
            hides = hides | (h + BLOCK_H > GROUP)
        if HAS_QUERY_MASK:
            hides = rows > 0  # any tile may
        if hides:  # a row that is not there is zeros, which times an infinite key are no number
            b_p = tl.where((b_minus == float("-inf"))[:, None], 0.0, b_p)
        if CAUSAL:  # noqa: SIM102 - known to the compiler, and then known to the program
            if last_column > query_start + t:
                b_p = tl.where(o_n[None, :] <= (query_start + t + o_t)[:, None], b_p, 0.0)
        b_sum += b_p
    return tl.sum(b_sum, 0)


# What changes from stage to stage, or prompt to prompt, must not make the compiler specialise again.
@triton.jit(
    do_not_specialize=[
        "rows", "first_column", "num_columns", "query_start", "scale_log2", "workspace_words",
        "stride_lb", "stride_lh", "stride_ls", "splits", "stride_mb", "stride_rb",
    ],
    do_not_specialize_on_alignment=["lse", "key_mask", "query_mask"],
)  # fmt: skip
def _column_sums_kernel(
    query, key, lse, key_mask, query_mask, partial, workspace,
    rows, kv_heads, first_column, num_columns, query_start, scale_log2, workspace_words,
    stride_qb, stride_qh, stride_qt, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_ls, stride_lb, stride_lh, stride_lt, splits,
    stride_mb, stride_mn, stride_rb, stride_rt,
    CAUSAL: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_WORKSPACE: tl.constexpr,
    PRECISION: tl.constexpr, FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """Softmax probabilities of BLOCK_N columns summed over one key head's rows; grid (column blocks, Hkv, B).

    Each key tile is read once. One partial sum per key head and column goes to `partial` [B, Hkv, columns].
    Beside, the programs zero the `workspace` of the kernel that selects next, which saves a launch.
    """
    begin(FOLLOWS, SIGNALS)
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
        key + batch * stride_kb + head.to(tl.int64) * stride_kh,
        o_n,
        m_c,
        stride_kn,
        stride_kd,
        HEAD_DIM,
        BLOCK_D,
        PRECISION,
    )  # [BN, D]
    first_head = (head * GROUP).to(tl.int64)
    b_sum = probability_sums(
        b_k, o_n, first_column + tl.program_id(0) * BLOCK_N + BLOCK_N - 1,
        query + batch * stride_qb + first_head * stride_qh, lse + batch * stride_lb + first_head * stride_lh,
        query_mask + batch * stride_rb, rows, query_start, scale_log2,
        stride_qh, stride_qt, stride_qd, stride_lh, stride_lt, stride_ls, splits, stride_rt,
        CAUSAL, GROUP, HEAD_DIM, BLOCK_D, BLOCK_H, BLOCK_T, BLOCK_N, SPLITS, HAS_QUERY_MASK, PRECISION,
    )  # fmt: skip
    if HAS_KEY_MASK:
        seen = tl.load(key_mask + batch * stride_mb + o_n.to(tl.int64) * stride_mn, mask=m_c, other=0)
        b_sum = tl.where(seen != 0, b_sum, 0.0)
    tl.store(partial + (batch * kv_heads + head) * num_columns + o_c, b_sum, mask=m_c)


@triton.jit
def mean_of_partials(
    partial, query_mask, batch, column, in_range,
    num_columns, rows, group, stride_rb, stride_rt,
    KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The mean over heads and rows of the columns [BN], from their per-key-head sums, added in the heads' order."""
    partial += batch * KV_HEADS * num_columns
    b_sum = tl.zeros(column.shape, tl.float32)
    for head in tl.static_range(KV_HEADS):  # all loads are on their way at once
        b_sum += tl.load(partial + tl.cast(num_columns, tl.int64) * head + column, mask=in_range, other=0.0)
    counted = rows
    if HAS_QUERY_MASK:
        counted = 0
        for start in range(0, rows, BLOCK_T):
            o_t = start + tl.arange(0, BLOCK_T)
            in_mask = tl.load(query_mask + batch * stride_rb + o_t.to(tl.int64) * stride_rt, mask=o_t < rows, other=0)
            counted += tl.sum((in_mask != 0).to(tl.int32), 0)
    return b_sum / (tl.maximum(counted, 1) * KV_HEADS * group).to(tl.float32)


@triton.jit(do_not_specialize=["num_columns", "rows", "stride_rb"], do_not_specialize_on_alignment=["query_mask"])
def _mean_kernel(
    partial, query_mask, scores,
    num_columns, rows, group, stride_rb, stride_rt,
    KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores [B, columns] from the per-key-head sums; grid (column blocks, B)."""
    batch = tl.program_id(1).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_c = o_c < num_columns
    b_mean = mean_of_partials(
        partial, query_mask, batch, o_c, m_c, num_columns, rows, group, stride_rb, stride_rt, KV_HEADS, HAS_QUERY_MASK, 64
    )  # fmt: skip
    tl.store(scores + batch * num_columns + o_c, b_mean, mask=m_c)


_launch_column_sums, _launch_mean = Launcher(_column_sums_kernel), Launcher(_mean_kernel)


@functools.lru_cache(maxsize=256)
def _constants(
    causal: bool, tile: Tile, dim: int, group: int, rows: int, splits: int, masks: tuple[bool, bool], workspace: bool,
    dtype: torch.dtype, follows: bool, signals: bool,
) -> dict[str, Any]:  # fmt: skip
    """What the kernel is compiled for."""
    heads, text = row_tile(tile, group, rows)
    return {
        "CAUSAL": causal, "GROUP": group, "HEAD_DIM": dim, "BLOCK_D": max(16, power_of_two(dim)), "BLOCK_H": heads,
        "BLOCK_T": text, "BLOCK_N": tile.columns, "SPLITS": splits, "HAS_KEY_MASK": masks[0], "HAS_QUERY_MASK": masks[1],
        "HAS_WORKSPACE": workspace, "PRECISION": precision(dtype), "FOLLOWS": follows, "SIGNALS": signals,
    }  # fmt: skip


def partial_column_sums(scoring: Scoring, workspace: Tensor | None = None) -> Tensor:
    """Probabilities of each column summed over each key head's rows, [B, Hkv, v1-v0] float32.

    One launch, or two if the LSE is not given: then the keys are read twice, the second time from the L2
    cache, which holds a layer's keys up to some tens of thousands of tokens. Reading them once would mean
    to keep every tile on chip until all programs have met, and so a grid no larger than the chip.
    A `workspace`, if given, is zeroed on the way.
    """
    query, key, lse, key_mask, query_mask = (
        scoring.query,
        scoring.key,
        scoring.lse,
        scoring.key_mask,
        scoring.query_mask,
    )
    batch, query_heads, rows, dim = query.shape
    _, kv_heads, num_keys, _ = key.shape
    first, last = scoring.key_range
    group = query_heads // kv_heads
    query_start = min(scoring.query_start, num_keys)
    if lse is None:
        splits, most = partial_row_lse(query, key, query_start=query_start, scale=scoring.scale, key_mask=key_mask)
    else:
        splits, most = lse, 1
    tile = tile_for(query.device, query.dtype, dim)
    partial = torch.empty(batch, kv_heads, last - first, dtype=torch.float32, device=query.device)
    masks = [key if mask is None else mask.view(torch.uint8) for mask in (key_mask, query_mask)]
    _launch_column_sums(
        (ceil_div(last - first, tile.columns), kv_heads, batch),
        (query, key, splits, *masks, partial, partial if workspace is None else workspace),
        (
            rows, kv_heads, first, last - first, query_start, scoring.scale * LOG2_E.value,
            0 if workspace is None else workspace.numel(),
            *query.stride(), *key.stride(), *(splits.stride() if lse is None else (0, *lse.stride())),
            1 if lse is not None else splits.shape[0],
            *((0, 0) if key_mask is None else key_mask.stride()), *((0, 0) if query_mask is None else query_mask.stride()),
        ),
        _constants(
            last - 1 > query_start, tile, dim, group, rows, most, (key_mask is not None, query_mask is not None),
            workspace is not None, query.dtype, *overlapping(query.device, follows=lse is None).values(),
        ),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial


def column_sums(scoring: Scoring) -> Tensor:
    """As `functional.column_sums`: the partial sums, and one more launch for their mean."""
    partial = partial_column_sums(scoring)
    query, query_mask, (batch, kv_heads, columns) = scoring.query, scoring.query_mask, partial.shape
    scores = torch.empty(batch, columns, dtype=torch.float32, device=query.device)
    mask = partial if query_mask is None else query_mask.view(torch.uint8)
    _launch_mean(
        (ceil_div(columns, 256), batch, 1),
        (partial, mask, scores),
        (columns, query.shape[2], query.shape[1] // kv_heads, *((0, 0) if query_mask is None else mask.stride())),
        {"KV_HEADS": kv_heads, "HAS_QUERY_MASK": query_mask is not None, "BLOCK_N": 256},
    )
    return scores

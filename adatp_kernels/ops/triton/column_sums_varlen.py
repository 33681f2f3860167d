"""Column sums of packed sequences: the kernels of ``column_sums.py`` with a prologue that finds a program's sequence.

A flat grid has room for every sequence's blocks whatever the lengths, so nothing about them is needed on the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.arguments import PackedScoring
from adatp_kernels.ops.triton.column_sums import mean_of_partials, probability_sums
from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.operands import LOG2_E, load_keys, load_rows, precision
from adatp_kernels.ops.triton.row_lse import lse_over_keys
from adatp_kernels.ops.triton.tiles import ceil_div, packed_tile, power_of_two, tile_for

# Neither this nor the tile may follow the lengths: they are not known on the host, and if their totals decided, the
# bits of a prompt would depend on its company.
_SPLITS = 16


@triton.jit
def _find_sequence(cu_seqlens, stride, num_sequences, block, SIZE: tl.constexpr):
    """Which sequence a block of a flat grid belongs to: (its number, its first token, its length, the block within it).

    Blocks are of SIZE tokens. Sequence b's blocks begin at ``cu_seqlens[b] // SIZE + b``, which leaves room for the last
    one of the sequence before, partly filled; the block may lie beyond its sequence.
    """
    low, high = 0, num_sequences - 1
    while low < high:  # the last sequence that begins at this block or before it
        middle = (low + high + 1) // 2
        if tl.load(cu_seqlens + middle * stride).to(tl.int64) // SIZE + middle <= block:
            low = middle
        else:
            high = middle - 1
    first = tl.load(cu_seqlens + low * stride).to(tl.int64)
    length = (tl.load(cu_seqlens + (low + 1) * stride) - first).to(tl.int32)
    return low, first, length, (block - first // SIZE - low).to(tl.int32)


@triton.jit
def _load_range(ranges, sequence, length, stride_b, stride_e, HAS_RANGE: tl.constexpr):
    """The (first, last) of one sequence's range, cut to its length; the whole sequence without ranges."""
    first, last = 0, length
    if HAS_RANGE:
        first = tl.maximum(tl.load(ranges + sequence * stride_b).to(tl.int32), 0)
        last = tl.minimum(tl.load(ranges + sequence * stride_b + stride_e).to(tl.int32), length)
    return first, last


# What changes from batch to batch must not make the compiler specialise again.
@triton.jit(
    do_not_specialize=["num_sequences", "total_rows", "scale_log2", "stride_cq", "stride_ck", "stride_rb", "stride_re"],
    do_not_specialize_on_alignment=["cu_seqlens_q", "cu_seqlens_k", "query_range"],
)
def _row_lse_varlen_kernel(
    query, key, cu_seqlens_q, cu_seqlens_k, query_range, partial,
    num_sequences, total_rows, scale_log2, stride_cq, stride_ck, stride_rb, stride_re,
    stride_qt, stride_qh, stride_qd, stride_kn, stride_kh, stride_kd,
    HAS_QUERY_RANGE: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """LSE of a tile of one sequence's rows over one split of its keys; grid (row blocks, SPLITS, Hkv · tiles of a group's heads).

    Into `partial` [SPLITS, Hq, total_q]; rows outside `query_range` are left as they are.
    """
    sequence, first_row, length_q, block = _find_sequence(
        cu_seqlens_q, stride_cq, num_sequences, tl.program_id(0), BLOCK_T
    )
    row, last_row = _load_range(query_range, sequence, length_q, stride_rb, stride_re, HAS_QUERY_RANGE)
    rows = last_row - row
    if block * BLOCK_T < rows:
        head_tiles: tl.constexpr = (GROUP + BLOCK_H - 1) // BLOCK_H
        head = tl.program_id(2) // head_tiles
        first_key = tl.load(cu_seqlens_k + sequence * stride_ck).to(tl.int64)
        length_k = (tl.load(cu_seqlens_k + (sequence + 1) * stride_ck) - first_key).to(tl.int32)
        first_row += row
        query_start = length_k - length_q + row
        o_r = tl.arange(0, BLOCK_H * BLOCK_T)
        o_h = tl.program_id(2) % head_tiles * BLOCK_H + o_r // BLOCK_T
        o_t = block * BLOCK_T + o_r % BLOCK_T
        m_r = (o_h < GROUP) & (o_t < rows)
        o_h += head * GROUP
        b_q = load_rows(
            query + first_row * stride_qt, o_h, o_t, m_r, stride_qh, stride_qt, stride_qd, HEAD_DIM, BLOCK_D, PRECISION
        )  # [BM, D]
        visible = query_start + rows  # no row sees beyond the last one's own key
        split_length = tl.cdiv(tl.cdiv(visible, SPLITS), BLOCK_N) * BLOCK_N
        first = tl.program_id(1) * split_length
        b_lse = lse_over_keys(
            b_q, query_start, o_t, key + first_key * stride_kn + head.to(tl.int64) * stride_kh, key,
            first, tl.minimum(first + split_length, visible), scale_log2, stride_kn, stride_kd, 0,
            HEAD_DIM, BLOCK_D, BLOCK_N, False, PRECISION,
        )  # fmt: skip
        heads = tl.program_id(1) * (tl.num_programs(2) // head_tiles) * GROUP
        tl.store(partial + (heads + o_h).to(tl.int64) * total_rows + first_row + o_t, b_lse, mask=m_r)


@triton.jit(
    do_not_specialize=[
        "num_sequences", "total_keys", "scale_log2", "splits", "stride_cq", "stride_ck", "stride_rb", "stride_re", "stride_vb",
        "stride_ve", "stride_lh", "stride_ls", "stride_mt",
    ],
    do_not_specialize_on_alignment=["lse", "cu_seqlens_q", "cu_seqlens_k", "query_range", "key_range", "query_mask"],
)  # fmt: skip
def _column_sums_varlen_kernel(
    query, key, lse, cu_seqlens_q, cu_seqlens_k, query_range, key_range, query_mask, partial,
    num_sequences, total_keys, scale_log2, stride_cq, stride_ck, stride_rb, stride_re, stride_vb, stride_ve,
    stride_qt, stride_qh, stride_qd, stride_kn, stride_kh, stride_kd,
    stride_ls, stride_lh, stride_lt, splits, stride_mt,
    HAS_QUERY_RANGE: tl.constexpr, HAS_KEY_RANGE: tl.constexpr, HAS_QUERY_MASK: tl.constexpr,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities of BLOCK_N keys of one sequence summed over one key head's packed rows; grid (key blocks, Hkv).

    Into `partial` [Hkv, total_k]; zero for keys outside their sequence's range.
    """
    sequence, first_key, length_k, block = _find_sequence(
        cu_seqlens_k, stride_ck, num_sequences, tl.program_id(0), BLOCK_N
    )
    o_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    if block * BLOCK_N < length_k:
        head = tl.program_id(1)
        first_row = tl.load(cu_seqlens_q + sequence * stride_cq).to(tl.int64)
        length_q = (tl.load(cu_seqlens_q + (sequence + 1) * stride_cq) - first_row).to(tl.int32)
        row, last_row = _load_range(query_range, sequence, length_q, stride_rb, stride_re, HAS_QUERY_RANGE)
        column, last_column = _load_range(key_range, sequence, length_k, stride_vb, stride_ve, HAS_KEY_RANGE)
        first_row += row
        m_n = (o_n >= column) & (o_n < last_column)
        b_k = load_keys(
            key + first_key * stride_kn + head.to(tl.int64) * stride_kh, o_n, m_n, stride_kn, stride_kd,
            HEAD_DIM, BLOCK_D, PRECISION,
        )  # [BN, D]  # fmt: skip
        # A block without a column that counts has no rows to look at.
        counts = (block * BLOCK_N < last_column) & (block * BLOCK_N + BLOCK_N > column)
        rows = tl.where(counts, last_row - row, 0)
        query_start = length_k - length_q + row
        first_head = (head * GROUP).to(tl.int64)
        query += first_row * stride_qt + first_head * stride_qh
        lse += first_row * stride_lt + first_head * stride_lh
        query_mask += first_row * stride_mt
        b_sum = probability_sums(
            b_k, o_n, block * BLOCK_N + BLOCK_N - 1, query, lse, query_mask, rows, query_start, scale_log2,
            stride_qh, stride_qt, stride_qd, stride_lh, stride_lt, stride_ls, splits, stride_mt,
            True, GROUP, HEAD_DIM, BLOCK_D, BLOCK_H, BLOCK_T, BLOCK_N, SPLITS, HAS_QUERY_MASK, PRECISION,
        )  # fmt: skip
        b_sum = tl.where(m_n, b_sum, 0.0)
        tl.store(partial + head.to(tl.int64) * total_keys + first_key + o_n, b_sum, mask=o_n < length_k)


@triton.jit(
    do_not_specialize=["num_sequences", "total_keys", "stride_cq", "stride_ck", "stride_rb", "stride_re", "stride_mt"],
    do_not_specialize_on_alignment=["cu_seqlens_q", "cu_seqlens_k", "query_range", "query_mask"],
)
def _mean_varlen_kernel(
    partial, cu_seqlens_q, cu_seqlens_k, query_range, query_mask, scores,
    num_sequences, total_keys, stride_cq, stride_ck, stride_rb, stride_re, stride_mt,
    KV_HEADS: tl.constexpr, HAS_QUERY_RANGE: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores [total_k] from the per-key-head sums; grid (key blocks,)."""
    sequence, first_key, length_k, block = _find_sequence(
        cu_seqlens_k, stride_ck, num_sequences, tl.program_id(0), BLOCK_N
    )
    first_row = tl.load(cu_seqlens_q + sequence * stride_cq).to(tl.int64)
    length_q = (tl.load(cu_seqlens_q + (sequence + 1) * stride_cq) - first_row).to(tl.int32)
    row, last_row = _load_range(query_range, sequence, length_q, stride_rb, stride_re, HAS_QUERY_RANGE)
    o_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    b_mean = mean_of_partials(
        partial, query_mask + (first_row + row) * stride_mt, 0, first_key + o_n, o_n < length_k,
        total_keys, last_row - row, GROUP, 0, stride_mt, KV_HEADS, HAS_QUERY_MASK, 64,
    )  # fmt: skip
    tl.store(scores + first_key + o_n, b_mean, mask=o_n < length_k)


_launch_row_lse, _launch_column_sums, _launch_mean = map(
    Launcher, (_row_lse_varlen_kernel, _column_sums_varlen_kernel, _mean_varlen_kernel)
)


def column_sums_varlen(packed: PackedScoring) -> Tensor:
    """As `functional.column_sums_varlen`: two launches, three if the LSE is not given."""
    query, key, lse, query_range, key_range = packed.query, packed.key, packed.lse, packed.query_range, packed.key_range
    cu_seqlens_q, cu_seqlens_k, query_mask = packed.cu_seqlens_q, packed.cu_seqlens_k, packed.query_mask
    (total_rows, query_heads, dim), (total_keys, kv_heads, _) = query.shape, key.shape
    group, num_sequences = query_heads // kv_heads, len(cu_seqlens_k) - 1
    scale_log2 = packed.scale * LOG2_E.value
    tile = tile_for(query.device, query.dtype, dim)
    heads, text = packed_tile(tile, group)
    lengths = (*cu_seqlens_q.stride(), *cu_seqlens_k.stride())
    rows, columns = (key if ranges is None else ranges for ranges in (query_range, key_range))
    row_strides, column_strides = ((0, 0) if r is None else r.stride() for r in (query_range, key_range))
    mask, mask_stride = (key, 0) if query_mask is None else (query_mask.view(torch.uint8), query_mask.stride(0))
    has_rows, most = query_range is not None, _SPLITS if lse is None else 1
    product = {
        "GROUP": group,
        "HEAD_DIM": dim,
        "BLOCK_D": max(16, power_of_two(dim)),
        "BLOCK_H": heads,
        "BLOCK_T": text,
    }
    if lse is None:
        splits = torch.empty(_SPLITS, query_heads, total_rows, dtype=torch.float32, device=query.device)
        _launch_row_lse(
            (total_rows // text + num_sequences, _SPLITS, kv_heads * ceil_div(group, heads)),
            (query, key, cu_seqlens_q, cu_seqlens_k, rows, splits),
            (num_sequences, total_rows, scale_log2, *lengths, *row_strides, *query.stride(), *key.stride()),
            {
                "HAS_QUERY_RANGE": has_rows, "SPLITS": most, **product, "BLOCK_N": tile.columns,
                "PRECISION": precision(query.dtype),
            },
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    else:
        splits = lse[None]
    partial = torch.empty(kv_heads, total_keys, dtype=torch.float32, device=query.device)
    _launch_column_sums(
        (total_keys // tile.columns + num_sequences, kv_heads, 1),
        (query, key, splits, cu_seqlens_q, cu_seqlens_k, rows, columns, mask, partial),
        (
            num_sequences, total_keys, scale_log2, *lengths, *row_strides, *column_strides,
            *query.stride(), *key.stride(), *splits.stride(), len(splits), mask_stride,
        ),
        {
            "HAS_QUERY_RANGE": has_rows, "HAS_KEY_RANGE": key_range is not None, "HAS_QUERY_MASK": query_mask is not None,
            **product, "BLOCK_N": tile.columns, "SPLITS": most, "PRECISION": precision(query.dtype),
        },
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    scores = torch.zeros(total_keys, dtype=torch.float32, device=query.device)  # also behind the last sequence
    _launch_mean(
        (total_keys // 256 + num_sequences, 1, 1),
        (partial, cu_seqlens_q, cu_seqlens_k, rows, mask, scores),
        (num_sequences, total_keys, *lengths, *row_strides, mask_stride),
        {
            "KV_HEADS": kv_heads, "HAS_QUERY_RANGE": has_rows, "HAS_QUERY_MASK": query_mask is not None, "GROUP": group,
            "BLOCK_N": 256,
        },
    )  # fmt: skip
    return scores

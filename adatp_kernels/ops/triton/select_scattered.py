"""Select where segments may lie anywhere: a program per segment decides, the last to finish compacts. One launch.

Segments are independent of each other: a program finds which of its own columns to keep and flags them.
What is left is to write the flagged columns in ascending order; the program that arrives last does so
for the whole row, whichever it is, so the result does not depend on the order of arrival.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.arguments import Selection
from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.ranking import Source, column_scores, key_of, order_of, write_text
from adatp_kernels.ops.triton.tiles import power_of_two

# Positions per segment up to which their best columns are sorted at once instead of by digits.
_SORTED_POSITIONS = 1024
# Columns that a program looks at together: of its own segment, and of the whole row.
_BLOCK, _ROW_BLOCK = 1024, 4096


@triton.jit
def _is_mine(segments, stride, segment, column, end):
    """Which columns before `end` are the segment's."""
    return tl.load(segments + column.to(tl.int64) * stride, mask=column < end, other=-1) == segment


# What changes from stage to stage, or prompt to prompt, must not make the compiler specialise again.
@triton.jit(
    do_not_specialize=[
        "num_columns", "num_segments", "num_kept", "num_positions", "soft_weight", "first", "after", "length", "rows",
        "stride_sb", "stride_gb", "stride_pb", "stride_ub", "stride_wb", "stride_rb",
    ],
    do_not_specialize_on_alignment=[
        "given", "partial", "query_mask", "segments", "positions", "budgets", "prior", "best", "arrived",
    ],
)  # fmt: skip
def _select_scattered_kernel(
    given, partial, query_mask, prior, segments, positions, budgets, best, arrived, work, flags, kept,
    num_columns, num_segments, num_positions, num_kept, soft_weight, first, after, length,
    stride_gb, stride_gn, stride_pb, stride_pn, stride_ub, stride_us,
    rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
    HAS_PARTIAL: tl.constexpr, KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_PRIOR: tl.constexpr,
    DEDUP: tl.constexpr, SORTED: tl.constexpr, BLOCK: tl.constexpr, ROW_BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """Grid (segments, B). ``best`` [B, S, P] uint64 and ``arrived`` [B] int64 come zeroed.

    ``given`` holds the scores unless ``partial`` does; ``work`` [B, N] int32 takes them up, and then their orders, 0
    for a column that does not compete. ``flags`` [B, N] int8 says what stays, and ``kept`` [B, tokens] lists it.

    1. Where the segment's columns begin and end. Besides, the first program flags what is always kept.
    2. The columns' scores: reduce the partial ones, apply the prior, and (with deduplication) enter each
       column's key into ``best`` of its position by an integer maximum, which is the same in any order.
    3. The threshold: strict candidates are few and are sorted; otherwise scores become orders, and four passes
       over the columns each fix eight bits of the k-th largest order by a histogram.
    4. Flags; ties at the threshold go to the smaller columns by a running count.
    5. The last program to arrive compacts the row by a running sum.
    """
    begin(FOLLOWS, SIGNALS)
    segment, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    segments += batch * stride_gb
    positions += batch * stride_pb
    flags += batch * num_columns
    best += (batch * num_segments + segment) * num_positions
    work += batch * num_columns
    k = tl.load(budgets + batch * stride_ub + segment.to(tl.int64) * stride_us)
    k = tl.minimum(tl.maximum(k, 0), num_columns).to(tl.int32)

    low, high = num_columns, 0
    for start in range(0, num_columns, ROW_BLOCK):
        o_c = start + tl.arange(0, ROW_BLOCK)
        m_c = o_c < num_columns
        ids = tl.load(segments + o_c.to(tl.int64) * stride_gn, mask=m_c, other=-1)
        mine = m_c & (ids == segment)
        low = tl.minimum(low, tl.min(tl.where(mine, o_c, num_columns), 0))
        high = tl.maximum(high, tl.max(tl.where(mine, o_c + 1, 0), 0))
        # What has no segment is kept; an id beyond the budgets is a caller's mistake and is not.
        if segment == 0:
            tl.store(flags + o_c, (ids < 0).to(tl.int8), mask=m_c & ((ids < 0) | (ids >= num_segments)))

    for start in range(low, high, BLOCK):
        o_c = start + tl.arange(0, BLOCK)
        mine = _is_mine(segments, stride_gn, segment, o_c, high)
        b_score = column_scores(
            given, partial, query_mask, prior, batch, o_c, mine,
            num_columns, rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
            HAS_PARTIAL, KV_HEADS, HAS_QUERY_MASK, HAS_PRIOR,
        )  # fmt: skip
        if DEDUP == "off":
            tl.store(work + o_c, order_of(b_score).to(tl.int32, bitcast=True), mask=mine)
        else:
            position = tl.load(positions + o_c.to(tl.int64) * stride_pn, mask=mine, other=0)
            in_table = mine & (position >= 0) & (position < num_positions)
            tl.atomic_max(best + position, key_of(b_score, o_c), mask=in_table, sem="relaxed")
            if SORTED:
                tl.store(flags + o_c, tl.zeros((BLOCK,), tl.int8), mask=mine)
            else:
                tl.store(work + o_c, b_score.to(tl.int32, bitcast=True), mask=mine)
    tl.debug_barrier()

    if SORTED:  # strict, and few positions: their best columns are all that competes
        o_p = tl.arange(0, BLOCK_P)
        b_key = tl.load(best + o_p, mask=o_p < num_positions, other=0, cache_modifier=".cg")
        ordered = tl.sort(b_key, descending=True)
        threshold = tl.max(tl.where(o_p == k - 1, ordered, 0), 0)
        wins = (b_key >= threshold) & (b_key != 0) & (tl.zeros((BLOCK_P,), tl.int32) < k)
        column = b_key.to(tl.uint32).to(tl.int32, bitcast=True) ^ -1
        tl.store(flags + column, tl.full((BLOCK_P,), 1, tl.int8), mask=wins)
    else:
        if DEDUP != "off":  # from scores to the order in which columns compete, 0 for those that do not
            for start in range(low, high, BLOCK):
                o_c = start + tl.arange(0, BLOCK)
                mine = _is_mine(segments, stride_gn, segment, o_c, high)
                b_score = tl.load(work + o_c, mask=mine, other=0).to(tl.float32, bitcast=True)
                position = tl.load(positions + o_c.to(tl.int64) * stride_pn, mask=mine, other=0)
                in_table = mine & (position >= 0) & (position < num_positions)
                is_best = key_of(b_score, o_c) == tl.load(best + position, mask=in_table, other=0, cache_modifier=".cg")
                if DEDUP == "strict":
                    b_order = tl.where(is_best, order_of(b_score), 0)
                else:
                    b_order = order_of(tl.where(is_best, b_score, b_score * soft_weight))
                tl.store(work + o_c, b_order.to(tl.int32, bitcast=True), mask=mine)
            tl.debug_barrier()
        threshold = tl.zeros((), tl.uint32)  # the bits of the k-th largest that are fixed so far
        left = k  # of the columns that agree with them, so many are to be kept
        for shift in tl.static_range(24, -1, -8):
            b_count = tl.zeros((256,), tl.int32)
            for start in range(low, high, BLOCK):
                o_c = start + tl.arange(0, BLOCK)
                mine = _is_mine(segments, stride_gn, segment, o_c, high)
                b_order = tl.load(work + o_c, mask=mine, other=0).to(tl.uint32, bitcast=True)
                agrees = b_order != 0
                if shift < 24:
                    agrees = agrees & ((b_order >> (shift + 8)) == (threshold >> (shift + 8)))
                b_count += tl.histogram(((b_order >> shift) & 255).to(tl.int32), 256, mask=agrees)
            at_least = tl.sum(b_count, 0) - tl.cumsum(b_count, 0) + b_count  # columns with this digit or a higher one
            o_d = tl.arange(0, 256)
            chosen = tl.max(tl.where(at_least >= left, o_d, 0), 0)
            left -= tl.sum(tl.where(o_d > chosen, b_count, 0), 0)
            threshold = threshold | (chosen.to(tl.uint32) << shift)
        for start in range(low, high, BLOCK):
            o_c = start + tl.arange(0, BLOCK)
            mine = _is_mine(segments, stride_gn, segment, o_c, high)
            b_order = tl.load(work + o_c, mask=mine, other=0).to(tl.uint32, bitcast=True)
            ties = ((b_order != 0) & (b_order == threshold)).to(tl.int32)
            wins = (b_order > threshold) | ((ties == 1) & (tl.cumsum(ties, 0) <= left))
            left -= tl.sum(ties, 0)
            tl.store(flags + o_c, wins.to(tl.int8), mask=mine)

    # All of this program's flags are written before it is counted, and the last one sees them all.
    tl.debug_barrier()
    if tl.atomic_add(arrived + batch, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        kept += batch * (first + num_kept + length - after)
        write_text(kept, first, num_kept, num_columns, length, BLOCK)
        written = first
        for start in range(0, num_columns, ROW_BLOCK):
            o_c = start + tl.arange(0, ROW_BLOCK)
            stays = tl.load(flags + o_c, mask=o_c < num_columns, other=0, cache_modifier=".cg").to(tl.int32)
            place = written + tl.cumsum(stays, 0) - 1
            tl.store(kept + place, (first + o_c).to(tl.int64), mask=(stays == 1) & (place < first + num_kept))
            written += tl.sum(stays, 0)
        # Only if a caller was wrong about what can be selected: no index may be left to chance.
        for start in range(written, first + num_kept, BLOCK):
            o_t = start + tl.arange(0, BLOCK)
            tl.store(kept + o_t, tl.zeros((BLOCK,), tl.int64) + (after - 1), mask=o_t < first + num_kept)


_launch = Launcher(_select_scattered_kernel)


def workspace_words(selection: Selection, num_positions: int) -> int:
    """uint64 words, zeroed, that `select` needs: the best key of every (segment, position), and a counter per row."""
    return len(selection.budgets) + (selection.budgets.numel() * num_positions if selection.dedup != "off" else 0)


def select(
    source: Source,
    selection: Selection,
    num_positions: int,
    workspace: Tensor,
    kept: Tensor,
    first: int,
    length: int,
    follows: bool,
) -> None:
    """Write the surviving tokens into `kept`; see `select.Selecting.run`."""
    segments, positions, budgets, dedup = (
        selection.segments, selection.positions, selection.budgets, selection.dedup,
    )  # fmt: skip
    (batch, num_columns), num_segments = segments.shape, budgets.shape[1]
    flags = torch.empty(batch, num_columns, dtype=torch.int8, device=segments.device)
    work = torch.empty(batch, num_columns, dtype=torch.int32, device=segments.device)
    sorts = dedup == "strict" and num_positions <= _SORTED_POSITIONS
    _launch(
        (num_segments, batch, 1),
        (
            *source.tensors(), segments, positions, budgets, workspace[:-batch], workspace[-batch:].view(torch.int64),
            work, flags, kept,
        ),
        (
            num_columns, num_segments, num_positions, selection.num_selected, selection.soft_weight,
            first, first + num_columns, length,
            *segments.stride(), *positions.stride(), *budgets.stride(), *source.numbers(),
        ),
        {
            **source.constants(), "DEDUP": dedup, "SORTED": sorts, "BLOCK": _BLOCK, "ROW_BLOCK": _ROW_BLOCK,
            "BLOCK_P": max(16, power_of_two(num_positions)) if sorts else 16,
            **overlapping(kept.device, follows=follows),
        },
        num_warps=8,
    )  # fmt: skip

"""Select where a segment's columns fit one program: it holds them all, decides, and knows where they go. One launch.

A program has a segment. The host knows which columns may be the segment's own, and where in the row its survivors stand, so
no program looks at another's columns and none waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.arguments import Selection
from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.ranking import Source, column_scores, key_of, order_of, range_of, write_text
from adatp_kernels.ops.triton.tiles import power_of_two

# Columns that are sorted at once, and that a program holds where only the best of each position are sorted.
_SORTED, _HELD = 1024, 4096


# What changes from stage to stage, or prompt to prompt, must not make the compiler specialise again.
@triton.jit(
    do_not_specialize=[
        "num_columns", "num_positions", "num_kept", "soft_weight", "first", "after", "length", "rows",
        "stride_gb", "stride_pb", "stride_ub", "stride_ab", "stride_rb", "stride_sb", "stride_wb",
    ],
    do_not_specialize_on_alignment=[
        "given", "partial", "query_mask", "prior", "segments", "positions", "budgets", "ranges", "best",
    ],
)  # fmt: skip
def _select_held_kernel(
    given, partial, query_mask, prior, segments, positions, budgets, ranges, best, kept,
    num_columns, num_positions, num_kept, soft_weight, first, after, length,
    stride_gb, stride_gn, stride_pb, stride_pn, stride_ub, stride_us, stride_ab, stride_as,
    rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
    HAS_PARTIAL: tl.constexpr, KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_PRIOR: tl.constexpr,
    DEDUP: tl.constexpr, HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """Grid (segments + 1, B); the last program of a row writes the tokens outside the columns.

    ``ranges`` [B, S, 3] says in which columns a segment lies and at which place among the row's survivors its own begin;
    without it the one segment has the row. ``best`` [B, S, P] uint64 comes zeroed, where columns are deduplicated.

    1. The columns' scores become orders, integers that compare as the method does.
    2. With deduplication every column's key, its order and then the smaller number, enters ``best`` of its position by an
       integer maximum, which is the same in any order.
    3. Sorted, the orders tell the smallest one that stays: all of them, or (BLOCK_P) those that are the best of a position.
    4. What is above it, ties and what is always kept are counted up, which gives every survivor its place.
    """
    begin(FOLLOWS, SIGNALS)
    segment, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_segments = tl.num_programs(0) - 1
    kept += batch * (first + num_kept + length - after)
    if segment == num_segments:
        write_text(kept, first, num_kept, num_columns, length, 256)
    else:
        low, high, place = range_of(ranges, segment, batch, num_columns, stride_ab, stride_as, HAS_RANGES)
        k = tl.load(budgets + batch * stride_ub + segment.to(tl.int64) * stride_us)
        k = tl.minimum(tl.maximum(k, 0), num_columns).to(tl.int32)
        o = tl.arange(0, BLOCK)
        o_c = low + o
        m_c = o_c < high
        ids = tl.load(segments + batch * stride_gb + o_c.to(tl.int64) * stride_gn, mask=m_c, other=num_segments)
        mine, always = ids == segment, ids < 0
        b_score = column_scores(
            given, partial, query_mask, prior, batch, o_c, mine,
            num_columns, rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
            HAS_PARTIAL, KV_HEADS, HAS_QUERY_MASK, HAS_PRIOR,
        )  # fmt: skip
        b_order = tl.where(mine, order_of(b_score), 0)  # 0 for a column that does not compete
        if DEDUP != "off":
            best += (batch * num_segments + segment) * num_positions
            position = tl.load(positions + batch * stride_pb + o_c.to(tl.int64) * stride_pn, mask=mine, other=-1)
            in_table = (position >= 0) & (position < num_positions)
            b_key = key_of(b_score, o_c)
            tl.atomic_max(best + position, b_key, mask=in_table, sem="relaxed")
            tl.debug_barrier()
            is_best = b_key == tl.load(best + position, mask=in_table, other=0, cache_modifier=".cg")
            if DEDUP == "strict":
                b_order = tl.where(is_best, b_order, 0)
            else:
                b_order = tl.where(mine & (is_best == 0), order_of(b_score * soft_weight), b_order)
        if BLOCK_P:
            o_p = tl.arange(0, BLOCK_P)
            b_best = tl.load(best + o_p, mask=o_p < num_positions, other=0, cache_modifier=".cg")
            b_sorted = tl.sort((b_best >> 32).to(tl.uint32), descending=True)
            threshold = tl.max(tl.where(o_p == k - 1, b_sorted, 0), 0)
        else:
            threshold = tl.max(tl.where(o == k - 1, tl.sort(b_order, descending=True), 0), 0)
        # A budget of 0 has no threshold, nor has one that fewer columns compete for: `left` is then 0, or more than there are.
        above = (b_order > threshold) & (tl.zeros((BLOCK,), tl.int32) < k)
        tied = (b_order == threshold) & (b_order != 0)
        left = k - tl.sum(above.to(tl.int32), 0)
        # Two counts at once, each below 2¹⁶: what stays for certain, and ties, of which the first `left` stay.
        count = tl.cumsum((above | always).to(tl.int32) + (tied.to(tl.int32) << 16), 0)
        ties = count >> 16
        stays = above | always | (tied & (ties <= left))
        o_k = place + (count & 0xFFFF) + tl.minimum(ties, left) - 1
        tl.store(kept + first + o_k, (first + o_c).to(tl.int64), mask=stays & (o_k < num_kept))
        # Only if a caller was wrong about what can be selected: no index may be left to chance.
        end = num_kept
        if HAS_RANGES:  # behind the last one there is nobody else
            own = tl.minimum(place + k + tl.sum(always.to(tl.int32), 0), num_kept)
            end = tl.where(high < num_columns, own, num_kept)
        for start in range(place + tl.sum(stays.to(tl.int32), 0), end, 256):
            o_f = start + tl.arange(0, 256)
            tl.store(kept + first + o_f, tl.zeros((256,), tl.int64) + (after - 1), mask=o_f < end)


_launch = Launcher(_select_held_kernel)


def fits(dedup: str, num_positions: int, longest: int) -> bool:
    """Whether a program can hold a segment of so many columns."""
    return longest <= (_HELD if dedup == "strict" and num_positions <= _SORTED else _SORTED)


def workspace_words(selection: Selection, num_positions: int) -> int:
    """uint64 words, zeroed, that `select` needs: the best key of every (segment, position)."""
    return selection.budgets.numel() * num_positions if selection.dedup != "off" else 0


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
    segments, positions, budgets, ranges = (
        selection.segments, selection.positions, selection.budgets, selection.segment_ranges,
    )  # fmt: skip
    (batch, num_columns), num_segments = segments.shape, budgets.shape[1]
    longest = selection.longest_segment or num_columns
    block = 256 if longest <= 256 else _SORTED if longest <= _SORTED else _HELD
    sorts_best = selection.dedup == "strict" and num_positions < block and num_positions <= _SORTED
    _launch(
        (num_segments + 1, batch, 1),
        (
            *source.tensors(), segments, positions, budgets, budgets if ranges is None else ranges,
            workspace, kept,
        ),
        (
            num_columns, num_positions, selection.num_selected, selection.soft_weight, first, first + num_columns, length,
            *segments.stride(), *positions.stride(), *budgets.stride(), *((0, 0) if ranges is None else ranges.stride()[:2]),
            *source.numbers(),
        ),
        {
            **source.constants(), "DEDUP": selection.dedup, "HAS_RANGES": ranges is not None, "BLOCK": block,
            "BLOCK_P": max(16, power_of_two(num_positions)) if sorts_best else 0,
            **overlapping(kept.device, follows=follows),
        },
        num_warps=8 if block <= 256 else 16,
    )  # fmt: skip

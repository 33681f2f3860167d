"""Debias and select in one Triton launch: a program per segment decides, the last to finish compacts.

Segments are independent of each other: a program finds which of its own columns to keep and flags them.
What is left is to write the flagged columns in ascending order; the program that arrives last does so
for the whole row, whichever it is, so the result does not depend on the order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.positions import count_positions, too_sparse
from adatp_kernels.ops.triton.column_sums import mean_of_partials
from adatp_kernels.ops.triton.tiles import power_of_two

# Positions per segment up to which their best columns are sorted at once instead of by digits.
_SORTED_POSITIONS = 1024
# Columns that a program looks at together: of its own segment, and of the whole row.
_BLOCK, _ROW_BLOCK = 1024, 4096


@triton.jit
def _order(score):
    """Scores as 32-bit unsigned integers of the same order, NaN lowest, −0 equal to +0. Never 0."""
    # Not `score + 0.0`, which a compiler may fuse with the product before it, and then −0 stays −0.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    return tl.where(score != score, 1, ordered)  # −∞ is 0x7FFFFF


@triton.jit
def _key(score, column):
    """One number per column that orders as the method does: the higher score, then the smaller column. Never 0."""
    return (_order(score).to(tl.uint64) << 32) | (column ^ -1).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def _is_mine(segments, stride, segment, column, end, scattered):
    """Which columns before `end` are the segment's; ids are read only if others' may stand between its own."""
    ids = tl.load(segments + column.to(tl.int64) * stride, mask=(column < end) & scattered, other=segment)
    return (column < end) & (ids == segment)


# What changes from stage to stage, or prompt to prompt, must not make the compiler specialise again.
@triton.jit(
    do_not_specialize=[
        "num_columns", "num_segments", "num_kept", "num_positions", "first", "after", "length", "rows",
        "stride_sb", "stride_gb", "stride_pb", "stride_ub", "stride_wb", "stride_rb",
    ],
    do_not_specialize_on_alignment=[
        "given", "partial", "query_mask", "segments", "positions", "budgets", "prior", "best", "arrived",
    ],
)  # fmt: skip
def _select_kernel(
    given, work, partial, query_mask, segments, positions, budgets, prior, best, arrived, flags, kept,
    num_columns, num_segments, num_positions, num_kept, soft_weight,
    first, after, length,
    kv_heads, rows, group, stride_rb, stride_rt,
    stride_sb, stride_sn, stride_gb, stride_gn, stride_pb, stride_pn, stride_ub, stride_us, stride_wb, stride_wn,
    DEDUP: tl.constexpr, HAS_PRIOR: tl.constexpr, HAS_PARTIAL: tl.constexpr, HAS_QUERY_MASK: tl.constexpr,
    SORTED: tl.constexpr, BLOCK: tl.constexpr, ROW_BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
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
    segment, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    segments += batch * stride_gb
    positions += batch * stride_pb
    flags += batch * num_columns
    best += (batch * num_segments + segment) * num_positions
    work += batch * num_columns
    k = tl.load(budgets + batch * stride_ub + segment.to(tl.int64) * stride_us)
    k = tl.minimum(tl.maximum(k, 0), num_columns).to(tl.int32)

    low, high, own = num_columns, 0, 0
    for start in range(0, num_columns, ROW_BLOCK):
        o_c = start + tl.arange(0, ROW_BLOCK)
        m_c = o_c < num_columns
        ids = tl.load(segments + o_c.to(tl.int64) * stride_gn, mask=m_c, other=-1)
        mine = m_c & (ids == segment)
        low = tl.minimum(low, tl.min(tl.where(mine, o_c, num_columns), 0))
        high = tl.maximum(high, tl.max(tl.where(mine, o_c + 1, 0), 0))
        own += tl.sum(mine.to(tl.int32), 0)
        # What has no segment is kept; an id beyond the budgets is a caller's mistake and is not.
        nobodys = m_c & (segment == 0) & ((ids < 0) | (ids >= num_segments))
        tl.store(flags + o_c, (ids < 0).to(tl.int8), mask=nobodys)
    scattered = own != high - low

    for start in range(low, high, BLOCK):
        o_c = start + tl.arange(0, BLOCK)
        mine = _is_mine(segments, stride_gn, segment, o_c, high, scattered)
        if HAS_PARTIAL:
            b_score = mean_of_partials(
                partial, query_mask, batch, o_c, mine, num_columns, kv_heads, rows, group, stride_rb, stride_rt, HAS_QUERY_MASK, 64
            )  # fmt: skip
        else:
            b_score = tl.load(given + batch * stride_sb + o_c.to(tl.int64) * stride_sn, mask=mine, other=0.0)
        if HAS_PRIOR:
            b_score = b_score * tl.load(
                prior + batch * stride_wb + o_c.to(tl.int64) * stride_wn, mask=mine, other=1.0
            ).to(tl.float32)
        if DEDUP == "off":
            tl.store(work + o_c, _order(b_score).to(tl.int32, bitcast=True), mask=mine)
        else:
            position = tl.load(positions + o_c.to(tl.int64) * stride_pn, mask=mine, other=0)
            in_table = mine & (position >= 0) & (position < num_positions)
            tl.atomic_max(best + position, _key(b_score, o_c), mask=in_table, sem="relaxed")
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
        wins = (b_key >= threshold) & (b_key != 0) & (k > 0)
        column = b_key.to(tl.uint32).to(tl.int32, bitcast=True) ^ -1
        tl.store(flags + column, tl.full((BLOCK_P,), 1, tl.int8), mask=wins)
    else:
        if DEDUP != "off":  # from scores to the order in which columns compete, 0 for those that do not
            for start in range(low, high, BLOCK):
                o_c = start + tl.arange(0, BLOCK)
                mine = _is_mine(segments, stride_gn, segment, o_c, high, scattered)
                b_score = tl.load(work + o_c, mask=mine, other=0).to(tl.float32, bitcast=True)
                position = tl.load(positions + o_c.to(tl.int64) * stride_pn, mask=mine, other=0)
                in_table = mine & (position >= 0) & (position < num_positions)
                is_best = _key(b_score, o_c) == tl.load(best + position, mask=in_table, other=0, cache_modifier=".cg")
                if DEDUP == "strict":
                    b_order = tl.where(is_best, _order(b_score), 0)
                else:
                    b_order = _order(tl.where(is_best, b_score, b_score * soft_weight))
                tl.store(work + o_c, b_order.to(tl.int32, bitcast=True), mask=mine)
            tl.debug_barrier()
        threshold = tl.zeros((), tl.uint32)  # the bits of the k-th largest that are fixed so far
        left = k  # of the columns that agree with them, so many are to be kept
        for shift in tl.static_range(24, -1, -8):
            b_count = tl.zeros((256,), tl.int32)
            for start in range(low, high, BLOCK):
                o_c = start + tl.arange(0, BLOCK)
                mine = _is_mine(segments, stride_gn, segment, o_c, high, scattered)
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
            mine = _is_mine(segments, stride_gn, segment, o_c, high, scattered)
            b_order = tl.load(work + o_c, mask=mine, other=0).to(tl.uint32, bitcast=True)
            ties = ((b_order != 0) & (b_order == threshold)).to(tl.int32)
            wins = (k > 0) & ((b_order > threshold) | ((ties == 1) & (tl.cumsum(ties, 0) <= left)))
            left -= tl.sum(ties, 0)
            tl.store(flags + o_c, wins.to(tl.int8), mask=mine)

    # All of this program's flags are written before it is counted, and the last one sees them all.
    tl.debug_barrier()
    if tl.atomic_add(arrived + batch, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        kept += batch * (first + num_kept + length - after)
        for start in range(0, first, BLOCK):
            o_t = start + tl.arange(0, BLOCK)
            tl.store(kept + o_t, o_t.to(tl.int64), mask=o_t < first)
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
        for start in range(after, length, BLOCK):
            o_t = start + tl.arange(0, BLOCK)
            tl.store(kept + (first + num_kept - after) + o_t, o_t.to(tl.int64), mask=o_t < length)


def select(
    scores: Tensor,
    segments: Tensor,
    positions: Tensor,
    budgets: Tensor,
    *,
    dedup: str,
    soft_weight: float,
    prior: Tensor | None,
    num_selected: int,
    num_positions: int | None,
) -> Tensor:
    """As `functional.select`."""
    if num_positions is None:
        num_positions = count_positions(positions, segments, dedup)
    if too_sparse(budgets, dedup, num_positions):
        return reference.select(
            scores, segments, positions, budgets, dedup=dedup, soft_weight=soft_weight, prior=prior,
            num_selected=num_selected, num_positions=num_positions,
        )  # fmt: skip
    return select_tokens(
        scores, None, segments, positions, budgets, dedup=dedup, soft_weight=soft_weight, prior=prior,
        num_selected=num_selected, num_positions=num_positions, workspace=None, first=0, length=scores.shape[1],
    )  # fmt: skip


@dataclass(frozen=True)
class Partial:
    """Scores that are still sums per key head, [B, Hkv, N], with what their mean is taken over."""

    sums: Tensor
    query_mask: Tensor | None
    rows: int
    group: int


def workspace_for(budgets: Tensor, dedup: str, num_positions: int, *, zeroed: bool) -> Tensor:
    """int64 memory for the best key of every (segment, position) and, last, a counter per batch row."""
    batch, num_segments = budgets.shape
    words = batch * (1 + (num_segments * num_positions if dedup != "off" else 0))
    make = torch.zeros if zeroed else torch.empty
    return make(words, dtype=torch.int64, device=budgets.device)


def select_tokens(
    scores: Tensor | None,
    partial: Partial | None,
    segments: Tensor,
    positions: Tensor,
    budgets: Tensor,
    *,
    dedup: str,
    soft_weight: float,
    prior: Tensor | None,
    num_selected: int,
    num_positions: int,
    workspace: Tensor | None,
    first: int,
    length: int,
) -> Tensor:
    """The surviving tokens [B, first + K + rest] of a sequence whose columns begin at token `first`; one launch.

    Parameters
    ----------
    scores : Tensor [B, N] or None
        Either these or `partial`.
    workspace : Tensor or None
        As `workspace_for` makes it, zeroed; made and zeroed here, which costs a launch, if None.
    first, length : int
        Tokens before the columns, and in the whole sequence; all outside the columns survive.
    """
    if budgets.shape[1] == 0:  # every column is always kept; one program is needed to say so
        budgets = budgets.new_zeros(len(budgets), 1)
    batch, num_columns = segments.shape
    num_segments = budgets.shape[1]
    if workspace is None:
        workspace = workspace_for(budgets, dedup, num_positions, zeroed=True)
    after = first + num_columns
    kept = torch.empty(batch, first + num_selected + length - after, dtype=torch.int64, device=segments.device)
    flags = torch.empty(batch, num_columns, dtype=torch.int8, device=segments.device)
    if partial is None:
        assert scores is not None
        given, sums, query_mask, kv_heads, rows, group = scores, scores, None, 1, 1, 1
    else:
        sums, query_mask, rows, group = partial.sums, partial.query_mask, partial.rows, partial.group
        given, kv_heads = sums[:, 0], sums.shape[1]
    work = torch.empty(batch, num_columns, dtype=torch.int32, device=segments.device)
    sorts = dedup == "strict" and num_positions <= _SORTED_POSITIONS
    wide = 4 if num_segments == 1 and not sorts else 1  # one program has the row to itself, and much to walk
    mask = sums if query_mask is None else query_mask.view(torch.uint8)
    _select_kernel[(num_segments, batch)](
        given, work, sums, mask, segments, positions, budgets, given if prior is None else prior,
        workspace[:-batch].view(torch.uint64), workspace[-batch:], flags, kept,
        num_columns, num_segments, num_positions, num_selected, soft_weight,
        first, after, length,
        kv_heads, rows, group, *((0, 0) if query_mask is None else mask.stride()),
        *given.stride(), *segments.stride(), *positions.stride(), *budgets.stride(),
        *((0, 0) if prior is None else prior.stride()),
        DEDUP=dedup, HAS_PRIOR=prior is not None, HAS_PARTIAL=partial is not None, HAS_QUERY_MASK=query_mask is not None,
        SORTED=sorts, BLOCK=wide * _BLOCK, ROW_BLOCK=_ROW_BLOCK,
        BLOCK_P=max(16, power_of_two(num_positions)) if sorts else 16, num_warps=8 if wide == 1 else 16,
    )  # fmt: skip
    return kept

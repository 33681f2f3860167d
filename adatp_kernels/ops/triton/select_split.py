"""Select where a segment has more columns than one program should walk: many programs share it, in five or six launches.

The k-th largest score is found by its digits, from the highest on: every program counts in a histogram how many of its own
columns have which digit, and the next launch's programs, who see all counts, agree on the digit. What is added up are
integers, so the order in which programs come does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.arguments import Selection
from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.ranking import Source, column_scores, key_of, order_of, range_of, write_text
from adatp_kernels.ops.triton.tiles import ceil_div

# Columns that a program looks at, and how many warps it has.
_BLOCK, _WARPS = 1024, 8
# The digits of a 32-bit order: (lowest bit, number of values).
_DIGITS = ((21, 2048), (10, 2048), (0, 1024))
_COUNTERS = sum(values for _, values in _DIGITS)


@triton.jit
def _own_columns(
    segments, ranges, num_columns, stride_gb, stride_gn, stride_ab, stride_as, HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program's columns [BLOCK] of its segment: their numbers, whether they are the segment's own, and always kept.

    Also the place of the segment's first survivor; grid (blocks, segments, B).
    """
    segment, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    low, high, place = range_of(ranges, segment, batch, num_columns, stride_ab, stride_as, HAS_RANGES)
    o_c = low + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offset = batch * stride_gb + o_c.to(tl.int64) * stride_gn
    ids = tl.load(segments + offset, mask=o_c < high, other=tl.num_programs(1))
    return o_c, ids == segment, ids < 0, place


@triton.jit
def _budget(budgets, num_columns, stride_ub, stride_us):
    """How many columns a program's segment keeps."""
    segment, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    k = tl.load(budgets + batch * stride_ub + segment * stride_us)
    return tl.minimum(tl.maximum(k, 0), num_columns).to(tl.int32)


@triton.jit
def _segment_number():
    """A segment's number in the whole batch."""
    return tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)


@triton.jit
def _count_digits(counters, b_order, competes, SHIFT: tl.constexpr, BINS: tl.constexpr):
    """Add to the segment's `counters` how many of the columns that compete have which digit."""
    b_digit = ((b_order >> SHIFT) & (BINS - 1)).to(tl.int32)
    b_count = tl.histogram(b_digit, BINS, mask=competes)
    tl.atomic_add(counters + tl.arange(0, BINS), b_count, mask=b_count > 0, sem="relaxed")


@triton.jit
def _next_digit(counters, threshold, left, SHIFT: tl.constexpr, BINS: tl.constexpr):
    """One more digit of the k-th largest order, and how many columns are left to keep among those that agree with all its digits."""
    o_d = tl.arange(0, BINS)
    b_count = tl.load(counters + o_d, cache_modifier=".cg")
    at_least = tl.sum(b_count, 0) - tl.cumsum(b_count, 0) + b_count  # columns with this digit or a higher one
    digit = tl.max(tl.where(at_least >= left, o_d, 0), 0)
    left -= tl.sum(tl.where(o_d > digit, b_count, 0), 0)
    return threshold | (digit.to(tl.uint32) << SHIFT), left


@triton.jit(
    do_not_specialize=[
        "num_columns", "num_positions", "rows", "stride_gb", "stride_pb", "stride_ab", "stride_rb", "stride_sb", "stride_wb",
    ],
    do_not_specialize_on_alignment=["given", "partial", "query_mask", "prior", "segments", "positions", "ranges", "best"],
)  # fmt: skip
def _enter_kernel(
    given, partial, query_mask, prior, segments, positions, ranges, best, work,
    num_columns, num_positions, stride_gb, stride_gn, stride_pb, stride_pn, stride_ab, stride_as,
    rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
    HAS_PARTIAL: tl.constexpr, KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_PRIOR: tl.constexpr,
    HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """Deduplication: every column's key enters ``best`` [B, S, P] of its position; its score waits in ``work`` [B, N]."""
    begin(FOLLOWS, SIGNALS)
    batch = tl.program_id(2).to(tl.int64)
    o_c, mine, _, _ = _own_columns(
        segments, ranges, num_columns, stride_gb, stride_gn, stride_ab, stride_as, HAS_RANGES, BLOCK
    )
    b_score = column_scores(
        given, partial, query_mask, prior, batch, o_c, mine,
        num_columns, rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
        HAS_PARTIAL, KV_HEADS, HAS_QUERY_MASK, HAS_PRIOR,
    )  # fmt: skip
    tl.store(work + batch * num_columns + o_c, b_score.to(tl.int32, bitcast=True), mask=mine)
    position = tl.load(positions + batch * stride_pb + o_c.to(tl.int64) * stride_pn, mask=mine, other=-1)
    in_table = (position >= 0) & (position < num_positions)
    best += _segment_number() * num_positions
    tl.atomic_max(best + position, key_of(b_score, o_c), mask=in_table, sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "num_columns", "num_positions", "soft_weight", "rows",
        "stride_gb", "stride_pb", "stride_ab", "stride_rb", "stride_sb", "stride_wb",
    ],
    do_not_specialize_on_alignment=["given", "partial", "query_mask", "prior", "segments", "positions", "ranges", "best"],
)  # fmt: skip
def _rank_kernel(
    given, partial, query_mask, prior, segments, positions, ranges, best, work, counters,
    num_columns, num_positions, soft_weight, stride_gb, stride_gn, stride_pb, stride_pn, stride_ab, stride_as,
    rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
    HAS_PARTIAL: tl.constexpr, KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_PRIOR: tl.constexpr,
    HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr,
    DEDUP: tl.constexpr, COUNTERS: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """Every column's order goes to ``work`` [B, N], 0 where it does not compete, and its highest digit is counted."""
    begin(FOLLOWS, SIGNALS)
    batch = tl.program_id(2).to(tl.int64)
    o_c, mine, _, _ = _own_columns(
        segments, ranges, num_columns, stride_gb, stride_gn, stride_ab, stride_as, HAS_RANGES, BLOCK
    )
    work += batch * num_columns + o_c
    competes = mine
    if DEDUP == "off":
        b_score = column_scores(
            given, partial, query_mask, prior, batch, o_c, mine,
            num_columns, rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
            HAS_PARTIAL, KV_HEADS, HAS_QUERY_MASK, HAS_PRIOR,
        )  # fmt: skip
    else:
        b_score = tl.load(work, mask=mine, other=0).to(tl.float32, bitcast=True)
        position = tl.load(positions + batch * stride_pb + o_c.to(tl.int64) * stride_pn, mask=mine, other=-1)
        in_table = (position >= 0) & (position < num_positions)
        best += _segment_number() * num_positions
        is_best = key_of(b_score, o_c) == tl.load(best + position, mask=in_table, other=0, cache_modifier=".cg")
        if DEDUP == "strict":
            competes = mine & is_best
        else:
            b_score = tl.where(is_best, b_score, b_score * soft_weight)
    b_order = order_of(b_score)
    tl.store(work, tl.where(competes, b_order, 0).to(tl.int32, bitcast=True), mask=mine)
    _count_digits(counters + _segment_number() * COUNTERS, b_order, competes, SHIFT, BINS)


@triton.jit
def _decide(
    counters,
    state,
    budgets,
    num_columns,
    stride_ub,
    stride_us,
    DIGIT: tl.constexpr,
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
):
    """Digit number DIGIT of the k-th largest order from its counters: the digits so far, and how many columns are left to keep.

    ``state`` [B, S, digits, 2] int32 keeps both for the next launch.
    """
    state += (_segment_number() * 3 + DIGIT) * 2
    if DIGIT == 0:
        threshold, left = tl.zeros((), tl.uint32), _budget(budgets, num_columns, stride_ub, stride_us)
    else:
        threshold, left = tl.load(state - 2).to(tl.uint32, bitcast=True), tl.load(state - 1)
    threshold, left = _next_digit(counters, threshold, left, SHIFT, BINS)
    if tl.program_id(0) == 0:
        tl.store(state, threshold.to(tl.int32, bitcast=True))
        tl.store(state + 1, left)
    return threshold, left


@triton.jit(
    do_not_specialize=["num_columns", "stride_gb", "stride_ub", "stride_ab"],
    do_not_specialize_on_alignment=["segments", "budgets", "ranges"],
)
def _narrow_kernel(
    segments, budgets, ranges, work, counters, state,
    num_columns, stride_gb, stride_gn, stride_ub, stride_us, stride_ab, stride_as,
    HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr, COUNTERS: tl.constexpr, OFFSET: tl.constexpr, DIGIT: tl.constexpr,
    SHIFT: tl.constexpr, BINS: tl.constexpr, NEXT_SHIFT: tl.constexpr, NEXT_BINS: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """The digit that was counted last is decided; of the columns that agree with all so far the next one is counted."""
    begin(FOLLOWS, SIGNALS)
    counters += _segment_number() * COUNTERS + OFFSET
    threshold, _ = _decide(counters, state, budgets, num_columns, stride_ub, stride_us, DIGIT, SHIFT, BINS)
    o_c, mine, _, _ = _own_columns(
        segments, ranges, num_columns, stride_gb, stride_gn, stride_ab, stride_as, HAS_RANGES, BLOCK
    )
    work += tl.program_id(2).to(tl.int64) * num_columns
    b_order = tl.load(work + o_c, mask=mine, other=0).to(tl.uint32, bitcast=True)
    agrees = (b_order != 0) & ((b_order >> SHIFT) == (threshold >> SHIFT))
    _count_digits(counters + BINS, b_order, agrees, NEXT_SHIFT, NEXT_BINS)


@triton.jit(
    do_not_specialize=["num_columns", "stride_gb", "stride_ub", "stride_ab"],
    do_not_specialize_on_alignment=["segments", "budgets", "ranges"],
)
def _count_kernel(
    segments, budgets, ranges, work, counters, state, tally,
    num_columns, stride_gb, stride_gn, stride_ub, stride_us, stride_ab, stride_as,
    HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr, COUNTERS: tl.constexpr, OFFSET: tl.constexpr, DIGIT: tl.constexpr,
    BINS: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """The last digit is decided. ``tally`` [B, S, blocks, 3] int32: a block's columns above the threshold, on it, and always kept."""
    begin(FOLLOWS, SIGNALS)
    counters += _segment_number() * COUNTERS + OFFSET
    threshold, _ = _decide(counters, state, budgets, num_columns, stride_ub, stride_us, DIGIT, 0, BINS)
    o_c, mine, always, _ = _own_columns(
        segments, ranges, num_columns, stride_gb, stride_gn, stride_ab, stride_as, HAS_RANGES, BLOCK
    )
    work += tl.program_id(2).to(tl.int64) * num_columns
    b_order = tl.load(work + o_c, mask=mine, other=0).to(tl.uint32, bitcast=True)
    tally += (_segment_number() * tl.num_programs(0) + tl.program_id(0)) * 3
    tl.store(tally, tl.sum((b_order > threshold).to(tl.int32), 0))
    tl.store(tally + 1, tl.sum(((b_order != 0) & (b_order == threshold)).to(tl.int32), 0))
    tl.store(tally + 2, tl.sum(always.to(tl.int32), 0))


@triton.jit(
    do_not_specialize=["num_columns", "num_kept", "first", "after", "length", "stride_gb", "stride_ub", "stride_ab"],
    do_not_specialize_on_alignment=["segments", "budgets", "ranges"],
)
def _write_kernel(
    segments, budgets, ranges, work, state, tally, kept,
    num_columns, num_kept, first, after, length, stride_gb, stride_gn, stride_ub, stride_us, stride_ab, stride_as,
    HAS_RANGES: tl.constexpr, BLOCK: tl.constexpr, DIGIT: tl.constexpr,
    FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """The survivors in ascending order; grid (blocks + 1, S, B): the last block's program writes what is not in the columns."""
    begin(FOLLOWS, SIGNALS)
    block, blocks, batch = tl.program_id(0), tl.num_programs(0) - 1, tl.program_id(2).to(tl.int64)
    kept += batch * (first + num_kept + length - after)
    if (block == blocks) & (tl.program_id(1) == 0):
        write_text(kept, first, num_kept, num_columns, length, 256)
    o_c, mine, always, place = _own_columns(
        segments, ranges, num_columns, stride_gb, stride_gn, stride_ab, stride_as, HAS_RANGES, BLOCK
    )
    state += (_segment_number() * 3 + DIGIT) * 2
    threshold, left = tl.load(state).to(tl.uint32, bitcast=True), tl.load(state + 1)
    tally += _segment_number() * blocks * 3
    above, tied, text = 0, 0, 0  # in the blocks before
    for start in range(0, block, 256):
        o_b = start + tl.arange(0, 256)
        above += tl.sum(tl.load(tally + o_b * 3, mask=o_b < block, other=0), 0)
        tied += tl.sum(tl.load(tally + o_b * 3 + 1, mask=o_b < block, other=0), 0)
        text += tl.sum(tl.load(tally + o_b * 3 + 2, mask=o_b < block, other=0), 0)
    written = place + above + tl.minimum(tied, left) + text
    if block < blocks:
        work += batch * num_columns
        b_order = tl.load(work + o_c, mask=mine, other=0).to(tl.uint32, bitcast=True)
        b_tie = ((b_order != 0) & (b_order == threshold)).to(tl.int32)
        stays = always | (b_order > threshold) | ((b_tie == 1) & (tied + tl.cumsum(b_tie, 0) <= left))
        o_k = written + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(kept + first + o_k, (first + o_c).to(tl.int64), mask=stays & (o_k < num_kept))
    else:
        # Only if a caller was wrong about what can be selected: no index may be left to chance.
        end = num_kept
        if HAS_RANGES:  # behind the last one there is nobody else
            own = tl.minimum(place + _budget(budgets, num_columns, stride_ub, stride_us) + text, num_kept)
            high = tl.load(ranges + batch * stride_ab + tl.program_id(1) * stride_as + 1)
            end = tl.where(high < num_columns, own, num_kept)
        for start in range(written, end, 256):
            o_k = start + tl.arange(0, 256)
            tl.store(kept + first + o_k, tl.zeros((256,), tl.int64) + (after - 1), mask=o_k < end)


_launch_enter, _launch_rank, _launch_narrow, _launch_count, _launch_write = map(
    Launcher, (_enter_kernel, _rank_kernel, _narrow_kernel, _count_kernel, _write_kernel)
)


def workspace_words(selection: Selection, num_positions: int) -> int:
    """uint64 words, zeroed, that `select` needs: the counters, and the best key of every (segment, position)."""
    best = num_positions if selection.dedup != "off" else 0
    return selection.budgets.numel() * (best + _COUNTERS // 2)


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
    (batch, num_columns), num_segments, dedup = segments.shape, budgets.shape[1], selection.dedup
    blocks = ceil_div(selection.longest_segment or num_columns, _BLOCK)
    # The counters first: they are aligned then however many segments and positions there are, and read several at once.
    words = budgets.numel() * _COUNTERS // 2
    counters, best = workspace[:words].view(torch.int32), workspace[words:]
    work = torch.empty(batch, num_columns, dtype=torch.int32, device=segments.device)
    state = torch.empty(batch, num_segments, len(_DIGITS), 2, dtype=torch.int32, device=segments.device)
    tally = torch.empty(batch, num_segments, blocks, 3, dtype=torch.int32, device=segments.device)
    grid = (blocks, num_segments, batch)
    columns = segments.stride()
    bounds = budgets if ranges is None else ranges
    strides = (0, 0) if ranges is None else ranges.stride()[:2]
    sizes = {"HAS_RANGES": ranges is not None, "BLOCK": _BLOCK}
    leading, following = (overlapping(kept.device, follows=after) for after in (follows, True))
    scored = (*columns, *positions.stride(), *strides, *source.numbers())
    if dedup != "off":
        _launch_enter(
            grid,
            (*source.tensors(), segments, positions, bounds, best, work),
            (num_columns, num_positions, *scored),
            {**source.constants(), **sizes, **leading},
            num_warps=_WARPS,
        )
        leading = following
    (shift, bins), *later = _DIGITS
    _launch_rank(
        grid,
        (*source.tensors(), segments, positions, bounds, best if best.shape[0] else work, work, counters),
        (num_columns, num_positions, selection.soft_weight, *scored),
        {
            **source.constants(), **sizes, "DEDUP": dedup, "COUNTERS": _COUNTERS, "SHIFT": shift, "BINS": bins, **leading,
        },
        num_warps=_WARPS,
    )  # fmt: skip
    chosen = (*columns, *budgets.stride(), *strides)
    offset = 0
    for digit, (next_shift, next_bins) in enumerate(later):
        _launch_narrow(
            grid,
            (segments, budgets, bounds, work, counters, state),
            (num_columns, *chosen),
            {
                **sizes, "COUNTERS": _COUNTERS, "OFFSET": offset, "DIGIT": digit, "SHIFT": shift, "BINS": bins,
                "NEXT_SHIFT": next_shift, "NEXT_BINS": next_bins, **following,
            },
            num_warps=_WARPS,
        )  # fmt: skip
        offset, shift, bins = offset + bins, next_shift, next_bins
    _launch_count(
        grid,
        (segments, budgets, bounds, work, counters, state, tally),
        (num_columns, *chosen),
        {**sizes, "COUNTERS": _COUNTERS, "OFFSET": offset, "DIGIT": len(later), "BINS": bins, **following},
        num_warps=_WARPS,
    )
    _launch_write(
        (blocks + 1, num_segments, batch),
        (segments, budgets, bounds, work, state, tally, kept),
        (num_columns, selection.num_selected, first, first + num_columns, length, *chosen),
        {**sizes, "DIGIT": len(later), **following},
        num_warps=_WARPS,
    )

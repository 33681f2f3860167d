"""How columns compete: their scores, and numbers that order as the method does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops.triton.column_sums import mean_of_partials


@triton.jit
def order_of(score):
    """Scores as 32-bit unsigned integers of the same order, NaN lowest, −0 equal to +0. Never 0."""
    # Not `score + 0.0`, which a compiler may fuse with the product before it, and then −0 stays −0.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    return tl.where(score != score, 1, ordered)  # −∞ is 0x7FFFFF


@triton.jit
def key_of(score, column):
    """One number per column that orders as the method does: the higher score, then the smaller column. Never 0."""
    return (order_of(score).to(tl.uint64) << 32) | (column ^ -1).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def column_scores(
    given, partial, query_mask, prior, batch, column, in_range,
    num_columns, rows, group, stride_rb, stride_rt, stride_sb, stride_sn, stride_wb, stride_wn,
    HAS_PARTIAL: tl.constexpr, KV_HEADS: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_PRIOR: tl.constexpr,
):  # fmt: skip
    """The scores [BN] of some columns: those given, or the mean of the partial sums; with the prior, if there is one."""
    if HAS_PARTIAL:
        b_score = mean_of_partials(
            partial, query_mask, batch, column, in_range,
            num_columns, rows, group, stride_rb, stride_rt, KV_HEADS, HAS_QUERY_MASK, 64,
        )  # fmt: skip
    else:
        b_score = tl.load(given + batch * stride_sb + column.to(tl.int64) * stride_sn, mask=in_range, other=0.0)
    if HAS_PRIOR:
        factor = tl.load(prior + batch * stride_wb + column.to(tl.int64) * stride_wn, mask=in_range, other=1.0)
        b_score = b_score * factor.to(tl.float32)
    return b_score


@triton.jit
def range_of(ranges, segment, batch, num_columns, stride_ab, stride_as, HAS_RANGES: tl.constexpr):
    """The columns ``[low, high)`` of a segment, and the place of its first survivor; without `ranges` it has the whole row."""
    low, high, place = 0, num_columns, 0
    if HAS_RANGES:
        ranges += batch * stride_ab + segment * stride_as
        low = tl.minimum(tl.maximum(tl.load(ranges), 0), num_columns).to(tl.int32)
        high = tl.minimum(tl.load(ranges + 1), num_columns).to(tl.int32)
        place = tl.minimum(tl.maximum(tl.load(ranges + 2), 0), num_columns).to(tl.int32)
    return low, high, place


@triton.jit
def write_text(kept, first, num_kept, num_columns, length, BLOCK: tl.constexpr):
    """The tokens before the columns and those after them: they all survive, with `num_kept` columns between them."""
    for start in range(0, length - num_columns, BLOCK):
        o_t = start + tl.arange(0, BLOCK)
        is_after = o_t >= first
        place, token = o_t + tl.where(is_after, num_kept, 0), o_t + tl.where(is_after, num_columns, 0)
        tl.store(kept + place, token.to(tl.int64), mask=o_t < length - num_columns)


@dataclass(eq=False)  # frozen, it would take three times as long to make
class Source:
    """Where scores come from, as the arguments that `column_scores` takes; see there for their order.

    Attributes
    ----------
    scores : Tensor [B, N] or None
    sums : Tensor [B, Hkv, N] or None
        Sums per key head instead, whose mean over `group` heads each and over `rows` text rows, of which `query_mask`
        [B, T] says which count, is the score.
    prior : Tensor [B, N] or None
    """

    scores: Tensor | None
    sums: Tensor | None
    query_mask: Tensor | None
    prior: Tensor | None
    rows: int = 1
    group: int = 1

    def tensors(self) -> tuple[Tensor, ...]:
        """Pointers; one that is not read is another's."""
        given = self.sums if self.scores is None else self.scores
        assert given is not None
        mask = given if self.query_mask is None else self.query_mask.view(torch.uint8)
        return given, given, mask, given if self.prior is None else self.prior

    def numbers(self) -> tuple[int, ...]:
        """Sizes and strides."""
        absent = (0, 0)
        return (
            self.rows, self.group,
            *(absent if self.query_mask is None else self.query_mask.stride()),
            *(absent if self.scores is None else self.scores.stride()),
            *(absent if self.prior is None else self.prior.stride()),
        )  # fmt: skip

    def constants(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        return {
            "HAS_PARTIAL": self.scores is None,
            "KV_HEADS": 1 if self.sums is None else self.sums.shape[1],
            "HAS_QUERY_MASK": self.query_mask is not None,
            "HAS_PRIOR": self.prior is not None,
        }

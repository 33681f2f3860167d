"""The operands of the score kernels: rows of the query and keys, as tiles on chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    query, o_h, o_t, m_r, stride_h, stride_t, stride_d,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The rows (head `o_h`, text row `o_t`) [BM] as [BM, BLOCK_D]; zeros where not `m_r`."""
    o_d = tl.arange(0, BLOCK_D)
    offset = o_h.to(tl.int64) * stride_h + o_t.to(tl.int64) * stride_t
    mask = m_r[:, None] & (o_d < HEAD_DIM)[None, :]
    return _operand(tl.load(query + offset[:, None] + o_d[None, :] * stride_d, mask=mask, other=0.0), PRECISION)


@triton.jit
def load_keys(
    key, column, in_range, stride_n, stride_d, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):
    """The keys `column` [BN] of one head, as [BN, BLOCK_D]; zeros where out of range."""
    o_d = tl.arange(0, BLOCK_D)
    mask = in_range[:, None] & (o_d < HEAD_DIM)[None, :]
    keys = tl.load(key + column.to(tl.int64)[:, None] * stride_n + o_d[None, :] * stride_d, mask=mask, other=0.0)
    return _operand(keys, PRECISION)


@triton.jit
def _operand(tile, PRECISION: tl.constexpr):
    """What is multiplied: in float32 where asked for; in half precision the matrix units take it as it is."""
    return tile.to(tl.float32) if PRECISION == "ieee" else tile


# Decided when the kernels were made: with TRITON_INTERPRET=1 they run on CPU tensors, slowly, and only there.
INTERPRETED = isinstance(load_rows, InterpretedFunction)


def precision(dtype: torch.dtype) -> str:
    """How operands are multiplied: "ieee" is in float32, and "tf32" leaves half precision to the matrix units as it is.

    float32 is not multiplied in tf32, which is off by 3e-4; and the interpreter multiplies bit patterns of bfloat16.
    """
    return "ieee" if dtype == torch.float32 or INTERPRETED else "tf32"

"""One Triton launch that moves the surviving tokens of every tensor of a stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import moved_shape
from adatp_kernels.ops.triton.tiles import ceil_div, power_of_two

# What one program moves, in elements of the widest kind: 16 kB of 8-byte words.
_PROGRAM_ELEMENTS = 2048
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


# What changes from stage to stage must not make the compiler specialise again.
@triton.jit(do_not_specialize=["num_rows", "num_kept", "stride_ib"])
def _gather_kernel(
    indices, sources, targets, first_programs, shapes, source_strides, target_strides,
    stride_ib, stride_ik, num_rows, num_kept,
    COUNT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """``target[b, o, k, :] = source[b, o, indices[b, k], :]`` for every tensor; grid (programs,).

    Each tensor owns a run of programs, from ``first_programs[i]`` on, and a program moves BLOCKS[i] =
    (tokens, elements, scale) of one batch row b and outer index o. Every element is read and written once.
    """
    program = tl.program_id(0)
    for i in tl.static_range(COUNT):
        if (program >= first_programs[i]) & (program < first_programs[i + 1]):
            BLOCK_K: tl.constexpr = BLOCKS[i][0]
            BLOCK_C: tl.constexpr = BLOCKS[i][1]
            SCALE: tl.constexpr = BLOCKS[i][2]
            outer, inner = shapes[i][0] // SCALE, shapes[i][1]
            source_b, source_o = source_strides[i][0] // SCALE, source_strides[i][1] // SCALE
            source_t, source_i = source_strides[i][2] // SCALE, source_strides[i][3]
            target_b, target_o = target_strides[i][0] // SCALE, target_strides[i][1] // SCALE
            target_t, target_i = target_strides[i][2] // SCALE, target_strides[i][3]
            tile = program - first_programs[i]
            chunks = tl.cdiv(inner, BLOCK_C)
            row = tile // (chunks * tl.cdiv(num_kept, BLOCK_K))
            o_c = (tile % chunks) * BLOCK_C + tl.arange(0, BLOCK_C)
            o_k = (tile // chunks) % tl.cdiv(num_kept, BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
            b, o = (row // outer).to(tl.int64), (row % outer).to(tl.int64)
            m_k = (o_k < num_kept) & (row < num_rows * outer)
            token = tl.load(indices + b * stride_ib + o_k.to(tl.int64) * stride_ik, mask=m_k, other=0)  # [BK] int64
            mask = m_k[:, None] & (o_c < inner)[None, :]
            o_c = o_c.to(tl.int64)
            source = sources[i] + b * source_b + o * source_o + token[:, None] * source_t + o_c[None, :] * source_i
            target = (
                targets[i]
                + b * target_b
                + o * target_o
                + o_k.to(tl.int64)[:, None] * target_t
                + o_c[None, :] * target_i
            )
            tl.store(target, tl.load(source, mask=mask, other=0), mask=mask)


@dataclass(frozen=True)
class _Move:
    """One tensor as the kernel sees it: [batch, outer, token, inner] of words.

    `outer` and the strides but the inner one are multiplied with `scale`, so that all stages of a prompt share one
    kernel. Triton compiles anew for every pattern of a tuple's integers that are divisible by 16 or equal to 1. With one
    element a token the strides are numbers of tokens, which change from stage to stage: they come 16-fold. With more
    they are multiples of the width, and that the compiler knows so is what makes accesses wide.
    """

    source: Tensor
    target: Tensor
    outer: int
    inner: int
    scale: int
    source_strides: tuple[int, int, int, int]
    target_strides: tuple[int, int, int, int]


def gather(indices: Tensor, tensors: Sequence[Tensor], dims: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """As `functional.gather`. A tensor whose other dimensions do not fold into two is moved by torch instead."""
    results: list[Tensor] = []
    moves: list[_Move] = []
    for tensor, (batch, token) in zip(tensors, dims, strict=True):
        result = torch.empty(
            moved_shape(tensor, (batch, token), *indices.shape), dtype=tensor.dtype, device=tensor.device
        )
        move = _fold(tensor, result, batch if len(indices) != 1 else None, token) if result.numel() else None
        if move is not None:
            moves.append(move)
        elif result.numel():
            (result,) = reference.gather(indices, [tensor], [(batch, token)])
        results.append(result)
    if moves:
        _launch(indices, moves)
    return tuple(results)


def _launch(indices: Tensor, moves: Sequence[_Move]) -> None:
    batch, num_kept = indices.shape
    blocks, first_programs = [], [0]
    for move in moves:
        elements = min(power_of_two(move.inner), 512)
        tokens = _PROGRAM_ELEMENTS // elements
        blocks.append((tokens, elements, move.scale))
        tiles = batch * (move.outer // move.scale) * ceil_div(num_kept, tokens) * ceil_div(move.inner, elements)
        # A multiple of 16, see `_Move`; the last programs may have nothing to do.
        first_programs.append(first_programs[-1] + ceil_div(tiles, 16) * 16)
    _gather_kernel[(first_programs[-1],)](
        indices,
        tuple(move.source for move in moves),
        tuple(move.target for move in moves),
        tuple(first_programs),
        tuple((move.outer, move.inner) for move in moves),
        tuple(move.source_strides for move in moves),
        tuple(move.target_strides for move in moves),
        *indices.stride(),
        batch,
        num_kept,
        COUNT=len(moves),
        BLOCKS=tuple(blocks),
    )


def _fold(source: Tensor, target: Tensor, batch: int | None, token: int) -> _Move | None:
    """`source` and `target` as [batch, outer, token, inner] words; None if they don't fold so."""
    source = source.resolve_conj().resolve_neg()
    width = _word(source, batch, token)
    if width > 8:  # complex128: two words each
        source, target, width = torch.view_as_real(source), torch.view_as_real(target), 8
    # What moves is bits, in words as wide as layout and alignment allow.
    source, target = source.view(_WORDS[width]), target.view(_WORDS[width])
    shape, strides, own = target.shape, source.stride(), target.stride()
    # A batch dimension may stand anywhere; dimensions fold within what it and the token leave side by side.
    folded = []
    for dims in (range(token - 1, -1, -1), range(len(shape) - 1, token, -1)):
        size, stride, target_stride = 1, 1, 1
        for dim in dims:
            if dim == batch or shape[dim] == 1:
                continue
            if size == 1:
                stride, target_stride = strides[dim], own[dim]
            elif (strides[dim], own[dim]) != (stride * size, target_stride * size):
                return None
            size *= shape[dim]
        folded.append((size, stride, target_stride))
    (outer, outer_stride, outer_own), (inner, inner_stride, inner_own) = folded
    batch_stride, batch_own = (0, 0) if batch is None else (strides[batch], own[batch])
    if batch is not None and source.shape[batch] == 1:
        batch_stride = 0
    scale = 16 if inner == 1 else 1
    return _Move(
        source, target, outer * scale, inner, scale,
        (batch_stride * scale, outer_stride * scale, strides[token] * scale, inner_stride),
        (batch_own * scale, outer_own * scale, own[token] * scale, inner_own),
    )  # fmt: skip


def _word(source: Tensor, batch: int | None, token: int) -> int:
    """Bytes of the widest word that the elements of a contiguous copy and of `source` fit whole."""
    size, last, strides = source.element_size(), source.dim() - 1, source.stride()
    if size >= 8 or last in (batch, token) or strides[last] != 1:
        return size  # several elements make a word only along an innermost dimension that is whole in both
    return math.gcd(8, source.shape[last] * size, source.storage_offset() * size, *[s * size for s in strides[:-1]])

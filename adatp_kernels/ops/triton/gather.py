"""One Triton launch that moves the surviving tokens of every tensor of a stage."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import moved_shape
from adatp_kernels.ops.triton.tiles import ceil_div, power_of_two

# What one program moves: 16 kB of 8-byte words, of as many tokens for every tensor, so that none has to divide.
_TOKENS, _BLOCK = 64, 32
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
# How many tensors of one layout a kernel takes. Few sizes, since Triton compiles a kernel for each of them.
_SLOTS = (1, 4, 16, 64)
_LAUNCH_SLOTS = 128  # of all layouts: their pointers fit the 4 kB to which some drivers limit a kernel's arguments
_TENSOR_ROWS = 1 << 19  # 16 times the rows of a launch are an int32
_GRID = 65535  # programs along the second and third dimension


# What changes from stage to stage must not make the compiler specialise again.
@triton.jit(do_not_specialize=["stride_ib", "num_kept"])
def _gather_kernel(
    indices, sources, targets, layouts, stride_ib, stride_ik, num_kept,
    KINDS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """``target[b, o, k, :] = source[b, o, indices[b, k], :]`` for every tensor; grid (rows, blocks of tokens, batch).

    A row is BLOCK words of every token: a part of a hidden state, or what one head has. Each tensor owns a run of rows,
    and a program finds its own by comparisons. `layouts` holds for each of KINDS its layouts, `sources` and `targets`
    for each of those its tensors. Every element is read and written once.
    """
    row = tl.program_id(0) * 16  # as all numbers of a layout
    b = tl.program_id(2).to(tl.int64)
    o_k = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)  # [BK]
    m_k = o_k < num_kept
    token = tl.load(indices + b * stride_ib + o_k.to(tl.int64) * stride_ik, mask=m_k, other=0).to(tl.int32)  # [BK]
    for kind in tl.static_range(len(KINDS)):
        if (row >= layouts[kind][0].first) & (row < layouts[kind][len(layouts[kind]) - 1].end):
            UNIT: tl.constexpr = KINDS[kind][1]
            BLOCK: tl.constexpr = KINDS[kind][2]
            STRIDED: tl.constexpr = KINDS[kind][3]
            SPLIT: tl.constexpr = KINDS[kind][4]
            # The row's layout and tensor are the last ones that begin no later.
            layout = layouts[kind][0]
            first, inner, part, parts = layout.first, layout.inner, layout.part, layout.parts
            source_b, source_r, source_t, source_i = layout.source
            target_b, target_r, target_t, target_i = layout.target
            source, target = sources[kind][0][0], targets[kind][0][0]
            for i in tl.static_range(len(layouts[kind])):
                layout = layouts[kind][i]
                if i > 0:
                    here = row >= layout.first
                    inner, part, parts = _choose3(
                        here, (layout.inner, layout.part, layout.parts), (inner, part, parts)
                    )
                    source_b, source_r, source_t, source_i = _choose4(
                        here, layout.source, (source_b, source_r, source_t, source_i)
                    )
                    target_b, target_r, target_t, target_i = _choose4(
                        here, layout.target, (target_b, target_r, target_t, target_i)
                    )
                for j in tl.static_range(len(sources[kind][i])):
                    if i + j > 0:
                        begin = layout.first + j * layout.rows
                        here = row >= begin
                        first, source, target = _choose3(
                            here, (begin, sources[kind][i][j], targets[kind][i][j]), (first, source, target)
                        )
            r = (row - first) >> 4
            if SPLIT:
                p, r = r % (parts >> 4), r // (parts >> 4)
            else:
                p = r
            o_c = tl.arange(0, BLOCK)  # [BC] words
            mask = m_k[:, None] & (o_c < ((inner - p * part) >> 4) * UNIT)[None, :]
            source += (b * (source_b >> 4) + r.to(tl.int64) * (source_r >> 4)) * UNIT
            target += (b * (target_b >> 4) + r.to(tl.int64) * (target_r >> 4)) * UNIT
            if SPLIT:
                source += p.to(tl.int64) * (BLOCK // UNIT) * (source_i >> 4) * UNIT
                target += p.to(tl.int64) * (BLOCK // UNIT) * (target_i >> 4) * UNIT
            if STRIDED:
                o_s = (o_c // UNIT).to(tl.int64) * (source_i >> 4) * UNIT + o_c % UNIT
                o_t = (o_c // UNIT).to(tl.int64) * (target_i >> 4) * UNIT + o_c % UNIT
            else:
                o_s, o_t = o_c, o_c
            o_s = token.to(tl.int64)[:, None] * ((source_t >> 4) * UNIT) + o_s[None, :]
            o_t = o_k.to(tl.int64)[:, None] * ((target_t >> 4) * UNIT) + o_t[None, :]
            tl.store(target + o_t, tl.load(source + o_s, mask=mask, other=0), mask=mask)


@triton.jit
def _choose3(condition, new, old):
    return (
        tl.where(condition, new[0], old[0]),
        tl.where(condition, new[1], old[1]),
        tl.where(condition, new[2], old[2]),
    )


@triton.jit
def _choose4(condition, new, old):
    return (
        tl.where(condition, new[0], old[0]),
        tl.where(condition, new[1], old[1]),
        tl.where(condition, new[2], old[2]),
        tl.where(condition, new[3], old[3]),
    )


class _Kind(NamedTuple):
    """What a tensor is to the compiler; a kernel has code for each kind."""

    word: int  # bytes of an element
    unit: int  # words that lie side by side and aligned in source and target: 2 are moved as 16 bytes
    block: int  # words of a row
    strided: bool  # inner units lie apart in source or target
    split: bool  # there are several outer indices, and the inner units of each make several rows


class _Strides(NamedTuple):
    batch: int
    row: int
    token: int
    inner: int


class _Layout(NamedTuple):
    """What the kernel computes addresses from: numbers of units, 16-fold.

    Triton compiles anew for every pattern of a tuple's integers that are divisible by 16 or equal to 1, whatever it is
    told; as they come, there is one pattern for all stages.
    """

    first: int  # row of the first tensor
    end: int  # row after the last tensor
    rows: int  # of each tensor
    inner: int  # units of a token of one outer index
    part: int  # of these, how many a row is further on than the one before
    parts: int  # rows of a token and outer index
    source: _Strides
    target: _Strides


class _Fold(NamedTuple):
    """A tensor as [batch, outer, token, inner] units, of which outer and inner make rows."""

    kind: _Kind
    rows: int
    inner: int
    part: int
    parts: int
    source: _Strides
    target: _Strides


_Move = tuple[Tensor, Tensor]  # source and target, viewed as words


def gather(indices: Tensor, tensors: Sequence[Tensor], dims: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """As `functional.gather`. A tensor whose other dimensions do not fold into two is moved by torch instead."""
    batch, num_kept = indices.shape
    fits = batch <= _GRID and num_kept <= _GRID * _TOKENS
    results: list[Tensor] = []
    moves: dict[_Fold, list[_Move]] = {}
    for tensor, dim in zip(tensors, dims, strict=True):
        result = torch.empty(moved_shape(tensor, dim, batch, num_kept), dtype=tensor.dtype, device=tensor.device)
        if result.numel():
            source, target = _plain(tensor), _plain(result)
            fold = _fold(source, target, dim[0] if batch != 1 else None, dim[1]) if fits else None
            if fold is None:
                (result,) = reference.gather(indices, [tensor], [dim])
            else:
                word = _WORDS[fold.kind.word]
                moves.setdefault(fold, []).append((source.view(word), target.view(word)))
        results.append(result)
    for launch in _launches(moves):
        _launch(indices, launch)
    return tuple(results)


def _launches(moves: dict[_Fold, list[_Move]]) -> Iterator[list[tuple[_Fold, list[_Move], int]]]:
    """Per launch what it moves of each layout, and in how many slots.

    The tensors of a stage differ from those of the next in the number of layers whose cache is compacted: these have one
    layout, fill one of few numbers of slots, and if that is not enough, launches of their own that are all alike.
    """
    first: list[tuple[_Fold, list[_Move], int]] = []
    for fold, alike in moves.items():
        part = alike[: _SLOTS[-1]]
        slots = next(slots for slots in _SLOTS if slots >= len(part))
        if sum(taken for *_, taken in first) + slots > _LAUNCH_SLOTS:
            yield first
            first = []
        first.append((fold, part, slots))
        for start in range(_SLOTS[-1], len(alike), _SLOTS[-1]):
            yield [(fold, alike[start : start + _SLOTS[-1]], _SLOTS[-1])]
    if first:
        yield first


def _launch(indices: Tensor, moves: Sequence[tuple[_Fold, list[_Move], int]]) -> None:
    batch, num_kept = indices.shape
    kinds: dict[_Kind, tuple[list, list, list]] = {fold.kind: ([], [], []) for fold, *_ in moves}
    rows = 0
    for kind, (layouts, sources, targets) in kinds.items():
        for fold, alike, slots in moves:
            if fold.kind == kind:
                end = rows + len(alike) * fold.rows * 16
                layouts.append(_Layout(rows, end, fold.rows * 16, *fold[2:]))
                rows = end
                # Slots that are left over repeat a tensor; no row is theirs.
                alike = alike + alike[:1] * (slots - len(alike))
                sources.append(tuple(source for source, _ in alike))
                targets.append(tuple(target for _, target in alike))
    layouts, sources, targets = (tuple(map(tuple, column)) for column in zip(*kinds.values(), strict=True))
    _gather_kernel[(rows // 16, ceil_div(num_kept, _TOKENS), batch)](
        indices,
        sources,
        targets,
        layouts,
        *indices.stride(),
        num_kept,
        KINDS=tuple(map(tuple, kinds)),
        TOKENS=_TOKENS,
    )


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` with its values in memory as they are, in elements of at most 8 bytes."""
    tensor = tensor.resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.element_size() > 8 else tensor


def _fold(source: Tensor, target: Tensor, batch: int | None, token: int) -> _Fold | None:
    """How `source` and the contiguous `target` fold; None if they don't."""
    size = source.element_size()
    aligned = math.gcd(16, source.data_ptr(), source.storage_offset() * size)
    apart = batch is not None and source.shape[batch] > 1
    return _fold_layout(tuple(target.shape), source.stride(), size, aligned, batch, token, apart)


# The keys and values of all layers fold alike, and so do the next prompt's.
@functools.lru_cache(maxsize=1024)
def _fold_layout(
    shape: tuple[int, ...], strides: tuple[int, ...], size: int, aligned: int, batch: int | None, token: int, apart: bool
) -> _Fold | None:
    """`_fold`, for a target of this shape and a source of these strides, `size` bytes an element and `aligned` to so many.

    `apart` tells whether the rows of a batch have their own tokens in the source.
    """
    unit = _unit(shape, strides, size, aligned, batch, token)
    # What moves is bits, in units as wide as layout and alignment allow.
    shape = (*shape[:-1], shape[-1] * size // unit)
    strides = (*(stride * size // unit for stride in strides[:-1]), strides[-1])
    own = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    # A batch dimension may stand anywhere; dimensions fold within what it and the token leave side by side.
    folded = []
    for dims in (range(token - 1, -1, -1), range(len(shape) - 1, token, -1)):
        length, stride, target_stride = 1, 1, 1
        for dim in dims:
            if dim == batch or shape[dim] == 1:
                continue
            if length == 1:
                stride, target_stride = strides[dim], own[dim]
            elif (strides[dim], own[dim]) != (stride * length, target_stride * length):
                return None
            length *= shape[dim]
        folded.append((length, stride, target_stride))
    if folded[1][0] == 1:
        folded.reverse()  # a mask's columns: what stands before the tokens is moved side by side
    (outer, source_outer, target_outer), (inner, source_inner, target_inner) = folded
    word = min(unit, 8)
    block = min(power_of_two(inner * unit // word), _BLOCK)
    part = block * word // unit
    parts = ceil_div(inner, part)
    if outer * parts > _TENSOR_ROWS:
        return None
    if outer == 1:  # a row is the next part
        source_outer, target_outer = part * source_inner, part * target_inner
    kind = _Kind(word, unit // word, block, (source_inner, target_inner) != (1, 1), outer > 1 and parts > 1)
    source_batch, target_batch = (0, 0) if batch is None else (strides[batch] * apart, own[batch])
    return _Fold(
        kind,
        outer * parts,
        inner * 16,
        (0 if outer > 1 and parts == 1 else part) * 16,
        parts * 16,
        _Strides(*(16 * s for s in (source_batch, source_outer, strides[token], source_inner))),
        _Strides(*(16 * s for s in (target_batch, target_outer, own[token], target_inner))),
    )


def _unit(
    shape: tuple[int, ...], strides: tuple[int, ...], size: int, aligned: int, batch: int | None, token: int
) -> int:
    """Bytes of the widest unit, up to 16, that the elements of a contiguous copy and of the source fit whole."""
    last = len(shape) - 1
    if last in (batch, token) or strides[last] != 1:
        return size  # several elements make a unit only along an innermost dimension that is whole in both
    return math.gcd(16, shape[last] * size, aligned, *[stride * size for stride in strides[:-1]])

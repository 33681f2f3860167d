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
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.tiles import ceil_div, power_of_two

# What one program moves: 16 kB of 8-byte words, of as many tokens for every tensor, so that none has to divide.
_TOKENS, _BLOCK = 64, 32
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
# How many tensors of one layout a kernel takes. Few numbers, since Triton compiles a kernel for each of them.
_SLOTS = (1, 4, 16, 64)
_LAUNCH_SLOTS = 128  # of all layouts: their pointers fit the 4 kB to which some drivers limit a kernel's arguments
_BRANCH = 16  # of how many slots a program looks at all
_TENSOR_ROWS = 1 << 19  # 16 times the rows of a launch are an int32
_GRID = 65535  # programs along the second and third dimension


# What changes from stage to stage must not make the compiler specialise again.
@triton.jit(do_not_specialize=["stride_ib", "num_kept"])
def _gather_kernel(
    indices, sources, targets, layouts, stride_ib, stride_ik, num_kept,
    KINDS: tl.constexpr, TOKENS: tl.constexpr, BRANCH: tl.constexpr, FOLLOWS: tl.constexpr, SIGNALS: tl.constexpr,
):  # fmt: skip
    """``target[b, o, k, :] = source[b, o, indices[b, k], :]`` for every tensor; grid (rows, blocks of tokens, batch).

    A row is BLOCK words of every token: a part of a hidden state, or what one head has. Each tensor owns a run of rows,
    and a program finds its own by comparisons. `layouts` holds for each of KINDS its layouts, `sources` and `targets`
    for each of those its tensors, of which BRANCH at a time are looked at. Every element is read and written once.
    """
    begin(FOLLOWS, SIGNALS)
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
            OFFSET: tl.constexpr = tl.int64 if KINDS[kind][5] else tl.int32
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
                    inner = tl.where(here, layout.inner, inner)
                    part = tl.where(here, layout.part, part)
                    parts = tl.where(here, layout.parts, parts)
                    source_b, source_r, source_t, source_i = _choose(
                        here, layout.source, (source_b, source_r, source_t, source_i)
                    )
                    target_b, target_r, target_t, target_i = _choose(
                        here, layout.target, (target_b, target_r, target_t, target_i)
                    )
                for slot in tl.static_range(0, len(sources[kind][i]), BRANCH):
                    start = layout.first + slot * layout.rows
                    if (row >= start) & (row < start + BRANCH * layout.rows):
                        first, source, target = start, sources[kind][i][slot], targets[kind][i][slot]
                        for j in tl.static_range(slot + 1, min(slot + BRANCH, len(sources[kind][i]))):
                            start += layout.rows
                            first = tl.where(row >= start, start, first)
                            source = tl.where(row >= start, sources[kind][i][j], source)
                            target = tl.where(row >= start, targets[kind][i][j], target)
            r = (row - first) >> 4
            if SPLIT:
                p, r = r % (parts >> 4), r // (parts >> 4)
                source += p.to(tl.int64) * (source_i >> 4) * BLOCK
                target += p.to(tl.int64) * (target_i >> 4) * BLOCK
            else:
                p = r
            source += (b * (source_b >> 4) + r.to(tl.int64) * (source_r >> 4)) * UNIT
            target += (b * (target_b >> 4) + r.to(tl.int64) * (target_r >> 4)) * UNIT
            o_c = tl.arange(0, BLOCK)  # [BC] words
            mask = m_k[:, None] & (o_c < ((inner - p * part) >> 4) * UNIT)[None, :]  # [BK, BC]
            o_s = token.to(OFFSET)[:, None] * ((source_t >> 4) * UNIT).to(OFFSET)  # [BK, 1]
            o_t = o_k.to(OFFSET)[:, None] * ((target_t >> 4) * UNIT).to(OFFSET)  # [BK, 1]
            if STRIDED:
                unit, word = (o_c // UNIT).to(OFFSET), o_c % UNIT  # [BC]
                o_s += (unit * ((source_i >> 4) * UNIT).to(OFFSET) + word)[None, :]  # [BK, BC]
                o_t += (unit * ((target_i >> 4) * UNIT).to(OFFSET) + word)[None, :]  # [BK, BC]
            else:
                o_s += o_c[None, :]  # [BK, BC]
                o_t += o_c[None, :]  # [BK, BC]
            tl.store(target + o_t, tl.load(source + o_s, mask=mask, other=0), mask=mask)


@triton.jit
def _choose(condition, new, old):
    """Four numbers: `new` where `condition` holds, else `old`."""
    return (
        tl.where(condition, new[0], old[0]),
        tl.where(condition, new[1], old[1]),
        tl.where(condition, new[2], old[2]),
        tl.where(condition, new[3], old[3]),
    )


class _Kind(NamedTuple):
    """What a tensor is to the compiler; a kernel has code for each kind."""

    word: int  # bytes of an element
    unit: int  # words that lie side by side and aligned in source and target; two are moved as 16 bytes
    block: int  # words of a row
    strided: bool  # inner units lie apart in source or target
    split: bool  # there are several outer indices, and each has several rows
    far: bool  # offsets within a row are beyond 32 bits


class _Strides(NamedTuple):
    batch: int
    row: int
    token: int
    inner: int


class _Fold(NamedTuple):
    """A tensor as [batch, outer, token, inner] units, of which outer and inner make rows; numbers are 16-fold.

    Triton compiles anew for every pattern of a tuple's integers that are divisible by 16 or equal to 1, whatever it is
    told; as they come, there is one pattern for all stages.
    """

    kind: _Kind
    rows: int
    inner: int
    part: int  # how many of the inner units a row is further on than the one before
    parts: int  # rows of each outer index
    source: _Strides
    target: _Strides


class _Layout(NamedTuple):
    """What the kernel knows of a run of tensors that fold alike: a `_Fold`, and which rows are theirs, 16-fold, too."""

    first: int
    end: int
    rows: int
    inner: int
    part: int
    parts: int
    source: _Strides
    target: _Strides


_Move = tuple[Tensor, Tensor]  # source and target, viewed as words


class _Run(NamedTuple):
    """Tensors that fold alike, and in how many slots of a launch they go."""

    fold: _Fold
    moves: list[_Move]
    slots: int


def gather(
    indices: Tensor, tensors: Sequence[Tensor], dims: Sequence[tuple[int, int]], *, follows: bool = False
) -> tuple[Tensor, ...]:
    """As `functional.gather`. A tensor whose other dimensions do not fold into two is moved by torch instead.

    `follows` is said where another of our kernels was launched last; see `overlap.py`.
    """
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
    for runs in _launches(moves):
        _launch(indices, runs, follows)
    return tuple(results)


def _launches(moves: dict[_Fold, list[_Move]]) -> Iterator[list[_Run]]:
    """What each launch moves.

    From one stage to the next there are more layers whose cache is compacted. They fold alike, and fill one of a few
    numbers of slots; what goes beyond the greatest has launches of its own, which are all the same to the compiler.
    """
    most = _SLOTS[-1]
    together: list[_Run] = []
    for fold, alike in moves.items():
        slots = next((slots for slots in _SLOTS if slots >= len(alike)), most)
        if sum(run.slots for run in together) + slots > _LAUNCH_SLOTS:
            yield together
            together = []
        together.append(_Run(fold, alike[:most], slots))
        for start in range(most, len(alike), most):
            yield [_Run(fold, alike[start : start + most], most)]
    if together:
        yield together


def _launch(indices: Tensor, runs: Sequence[_Run], follows: bool) -> None:
    batch, num_kept = indices.shape
    kinds = list(dict.fromkeys(run.fold.kind for run in runs))
    layouts: list[list[_Layout]] = [[] for _ in kinds]
    sources: list[list[tuple[Tensor, ...]]] = [[] for _ in kinds]
    targets: list[list[tuple[Tensor, ...]]] = [[] for _ in kinds]
    rows = 0
    for fold, moves, slots in sorted(runs, key=lambda run: kinds.index(run.fold.kind)):
        kind = kinds.index(fold.kind)
        end = rows + len(moves) * fold.rows
        layouts[kind].append(_Layout(rows, end, *fold[1:]))
        rows = end
        # What fills the slots that are left has no rows.
        padded = moves + moves[:1] * (slots - len(moves))
        sources[kind].append(tuple(source for source, _ in padded))
        targets[kind].append(tuple(target for _, target in padded))
    _gather_kernel[(rows // 16, ceil_div(num_kept, _TOKENS), batch)](
        indices,
        tuple(map(tuple, sources)),
        tuple(map(tuple, targets)),
        tuple(map(tuple, layouts)),
        *indices.stride(),
        num_kept,
        KINDS=tuple(map(tuple, kinds)),
        TOKENS=_TOKENS,
        BRANCH=_BRANCH,
        **overlapping(indices.device, follows=follows),
    )


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` with its values in memory as they are, in elements of at most 8 bytes."""
    tensor = tensor.resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.element_size() > 8 else tensor


def _fold(source: Tensor, target: Tensor, batch: int | None, token: int) -> _Fold | None:
    """How `source` and the contiguous `target` fold; None if they don't."""
    size = source.element_size()
    aligned = math.gcd(16, source.data_ptr(), source.storage_offset() * size)
    return _fold_layout(tuple(source.shape), source.stride(), size, aligned, tuple(target.shape), batch, token)


# The keys and values of all layers fold alike, and so do the next prompt's.
@functools.lru_cache(maxsize=1024)
def _fold_layout(
    given: tuple[int, ...],
    strides: tuple[int, ...],
    size: int,
    aligned: int,
    shape: tuple[int, ...],
    batch: int | None,
    token: int,
) -> _Fold | None:
    """How a source of shape `given`, `size` bytes an element and `aligned` to so many, folds into one of `shape`."""
    # What moves is bits, in units as wide as layout and alignment allow.
    unit = _unit(strides, size, aligned, shape, batch, token)
    word = min(unit, 8)
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
        folded.reverse()  # of a mask's columns, it is what stands before the token that makes the rows wide
    (outer, *apart), (inner, *between) = folded
    block = min(power_of_two(inner * unit // word), _BLOCK)
    part = block * word // unit
    parts = ceil_div(inner, part)
    if outer * parts > _TENSOR_ROWS or given[token] >= 1 << 31:
        return None
    if outer == 1:  # the next row is the next part
        apart = [part * stride for stride in between]
    along = [0, 0] if batch is None else [strides[batch] if given[batch] > 1 else 0, own[batch]]
    reach = [
        (tokens * stride + part * inner_stride) * unit // word
        for tokens, stride, inner_stride in zip(
            (given[token], shape[token]), (strides[token], own[token]), between, strict=True
        )
    ]
    source, target = (
        _Strides(*(16 * stride for stride in numbers))
        for numbers in zip(along, apart, (strides[token], own[token]), between, strict=True)
    )
    split = outer > 1 and parts > 1
    return _Fold(
        _Kind(word, unit // word, block, between != [1, 1], split, max(reach) >= 1 << 31),
        16 * outer * parts,
        16 * inner,
        16 * part if outer == 1 or split else 0,
        16 * parts,
        source,
        target,
    )


def _unit(
    strides: tuple[int, ...], size: int, aligned: int, shape: tuple[int, ...], batch: int | None, token: int
) -> int:
    """Bytes of the widest unit, up to 16, that the elements of a contiguous copy and of the source fit whole."""
    last = len(shape) - 1
    if last in (batch, token) or strides[last] != 1:
        return size  # several elements make a unit only along an innermost dimension that is whole in both
    return math.gcd(16, shape[last] * size, aligned, *[stride * size for stride in strides[:-1]])

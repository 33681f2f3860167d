"""One Triton launch that moves the surviving tokens of every tensor of a stage."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import moved_shape
from adatp_kernels.ops.triton.folding import Fold, Strides, fold
from adatp_kernels.ops.triton.launch import INT32, Launcher, kinds_of
from adatp_kernels.ops.triton.overlap import begin, overlapping
from adatp_kernels.ops.triton.tiles import ceil_div

_TOKENS = (
    64  # what one program moves: 16 kB of 8-byte words, of as many tokens for every tensor, so that none has to divide
)
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
# How many tensors of one layout a kernel takes. Few numbers, since Triton compiles a kernel for each of them.
_SLOTS = (1, 4, 16, 64)
_LAUNCH_SLOTS = 128  # of all layouts: their pointers fit the 4 kB to which some drivers limit a kernel's arguments
_BRANCH = 16  # of how many slots a program looks at all
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


_launch_kernel = Launcher(_gather_kernel)


class _Layout(NamedTuple):
    """What the kernel knows of a run of tensors that fold alike: a `Fold`, and which rows are theirs, 16-fold, too."""

    first: int
    end: int
    rows: int
    inner: int
    part: int
    parts: int
    source: Strides
    target: Strides


class Run(NamedTuple):
    """Tensors that fold alike, by their numbers, and in how many slots of a launch they go."""

    fold: Fold
    tensors: list[int]
    slots: int


class _Launch(NamedTuple):
    """What one launch moves; of kinds and of each kind's layouts, as the kernel takes them."""

    runs: list[Run]
    kinds: tuple[tuple[Any, ...], ...]
    layouts: tuple[tuple[_Layout, ...], ...]
    tensors: tuple[tuple[tuple[int, ...], ...], ...]  # the numbers of those in the slots
    moved: tuple[int, ...]  # the same, in a row
    rows: int
    key: tuple[Any, ...]  # what of this Triton compiles for


class _Plan(NamedTuple):
    """How some tensors are moved, known from their layouts alone."""

    shapes: list[list[int]]  # of the results
    launches: list[_Launch]
    by_torch: list[int]  # what does not fold


_is_neg, _is_complex = operator.methodcaller("is_neg"), operator.methodcaller("is_complex")

# What is known of a tensor: shape, strides, dtype, its address and its storage offset modulo 16, (batch, token) dimension.
_Given = tuple[torch.Size, tuple[int, ...], torch.dtype, int, int, tuple[int, int]]


def gather(
    indices: Tensor, tensors: Sequence[Tensor], dims: Sequence[tuple[int, int]], *, follows: bool = False
) -> tuple[Tensor, ...]:
    """As `functional.gather`. A tensor whose other dimensions do not fold into two is moved by torch instead.

    `follows` is said where another of our kernels was launched last; see `overlap.py`.
    """
    sources = tensors
    if any(map(_is_neg, tensors)) or any(map(_is_complex, tensors)):
        sources = [_plain(tensor) for tensor in tensors]
    given = tuple(
        [
            (source.shape, source.stride(), source.dtype, source.data_ptr() & 15, source.storage_offset() & 15, pair)
            for source, pair in zip(sources, dims, strict=True)
        ]
    )
    batch, num_kept = indices.shape
    plan = _plan(batch, num_kept, given)
    device = indices.device
    targets = [
        torch.empty(shape, dtype=source.dtype, device=device)
        for source, shape in zip(sources, plan.shapes, strict=True)
    ]
    for launch in plan.launches:
        _launch(indices, launch, sources, targets, follows)
    for number in plan.by_torch:
        (targets[number],) = reference.gather(indices, [sources[number]], [dims[number]])
    if sources is not tensors:
        for number, tensor in enumerate(tensors):
            if tensor.dtype == torch.complex128:
                targets[number] = torch.view_as_complex(targets[number])
    return tuple(targets)


# A prompt's stages come again with the next prompt of its size; each has the layouts of some dozens of tensors.
@functools.lru_cache(maxsize=256)
def _plan(batch: int, num_kept: int, given: tuple[_Given, ...]) -> _Plan:
    fits = batch <= _GRID and num_kept <= _GRID * _TOKENS
    shapes, by_torch = [], []
    alike: dict[Fold, list[int]] = {}
    for number, (shape, strides, dtype, address, offset, (batch_dim, token)) in enumerate(given):
        kept = moved_shape(shape, (batch_dim, token), batch, num_kept)
        shapes.append(kept)
        if 0 in kept:
            continue
        size = dtype.itemsize
        aligned = (16 | address | offset * size) & -(16 | address | offset * size)  # the greatest power of two in both
        folded = (
            fold(shape, strides, size, aligned, tuple(kept), batch_dim if batch != 1 else None, token) if fits else None
        )
        if folded is None:
            by_torch.append(number)
        else:
            alike.setdefault(folded, []).append(number)
    addresses = [address for _, _, _, address, _, _ in given]
    return _Plan(shapes, [_launch_of(runs, addresses) for runs in _shared_out(alike)], by_torch)


def _shared_out(alike: dict[Fold, list[int]]) -> list[list[Run]]:
    """The runs that each launch moves.

    From one stage to the next there are more layers whose cache is compacted. They fold alike, and fill one of a few
    numbers of slots; what goes beyond the greatest has launches of its own, which are all the same to the compiler.
    """
    most = _SLOTS[-1]
    launches: list[list[Run]] = []
    together: list[Run] = []
    for folded, numbers in alike.items():
        slots = next((slots for slots in _SLOTS if slots >= len(numbers)), most)
        if sum(run.slots for run in together) + slots > _LAUNCH_SLOTS:
            launches.append(together)
            together = []
        together.append(Run(folded, numbers[:most], slots))
        for start in range(most, len(numbers), most):
            launches.append([Run(folded, numbers[start : start + most], most)])
    return [*launches, together] if together else launches


def _launch_of(runs: list[Run], addresses: list[int]) -> _Launch:
    kinds = list(dict.fromkeys(run.fold.kind for run in runs))
    layouts: list[list[_Layout]] = [[] for _ in kinds]
    tensors: list[list[tuple[int, ...]]] = [[] for _ in kinds]
    rows = 0
    for folded, numbers, slots in sorted(runs, key=lambda run: kinds.index(run.fold.kind)):
        kind = kinds.index(folded.kind)
        end = rows + len(numbers) * folded.rows
        layouts[kind].append(_Layout(rows, end, *folded[1:]))
        rows = end
        # What fills the slots that are left has no rows.
        tensors[kind].append((*numbers, *numbers[:1] * (slots - len(numbers))))
    wide = tuple(
        number > INT32
        for kind in layouts
        for layout in kind
        for number in (*layout[:6], *layout.source, *layout.target)
    )
    slots_of = tuple(tuple(map(len, kind)) for kind in tensors)
    moved = tuple(number for kind in tensors for run in kind for number in run)
    key = (tuple(kinds), slots_of, wide if True in wide else None, tuple(addresses[number] for number in moved))
    return _Launch(
        runs, tuple(map(tuple, kinds)), tuple(map(tuple, layouts)), tuple(map(tuple, tensors)), moved, rows // 16, key
    )


def _launch(
    indices: Tensor, launch: _Launch, sources: Sequence[Tensor], targets: Sequence[Tensor], follows: bool
) -> None:
    (batch, num_kept), (stride_b, stride_k) = indices.shape, indices.stride()
    constants = {
        "KINDS": launch.kinds, "TOKENS": _TOKENS, "BRANCH": _BRANCH, **overlapping(indices.device, follows=follows),
    }  # fmt: skip

    def values(words: bool) -> tuple[Any, ...]:
        """All arguments; only Triton has to know that tensors are moved as words."""
        nested = (_nested(launch, tensors, words) for tensors in (sources, targets))
        return (indices, *nested, launch.layouts, stride_b, stride_k, num_kept, *constants.values())

    key = (
        indices.device.index, launch.key, follows, indices.data_ptr() & 15, *[targets[number].data_ptr() & 15 for number in launch.moved],
        *kinds_of((stride_k,)), stride_b > INT32, stride_k > INT32,
    )  # fmt: skip
    grid = (launch.rows, ceil_div(num_kept, _TOKENS), batch)
    _launch_kernel.run(key, grid, values(False), constants, typed=lambda: values(True))


def _nested(launch: _Launch, tensors: Sequence[Tensor], words: bool) -> tuple[tuple[tuple[Tensor, ...], ...], ...]:
    """The tensors in a launch's slots."""
    if words:
        return tuple(
            tuple(tuple(tensors[number].view(_WORDS[kind[0]]) for number in run) for run in runs)
            for kind, runs in zip(launch.kinds, launch.tensors, strict=True)
        )
    return tuple([tuple([tuple([tensors[number] for number in run]) for run in runs]) for runs in launch.tensors])


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` with its values in memory as they are, in elements of at most 8 bytes."""
    tensor = tensor.resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.element_size() > 8 else tensor

"""How a tensor's dimensions fold, so that one kernel moves tokens of any tensor: as [batch, outer, token, inner] units.

A unit is as many bytes as layout and alignment allow to move at once. What does not fold is left to torch.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from adatp_kernels.ops.triton.tiles import ceil_div, power_of_two

_BLOCK = 32  # words of a row at most
_TENSOR_ROWS = 1 << 19  # 16 times the rows of a launch are an int32


class Kind(NamedTuple):
    """What a tensor is to the compiler; a kernel has code for each kind."""

    word: int  # bytes of an element
    unit: int  # words that lie side by side and aligned in source and target; two are moved as 16 bytes
    block: int  # words of a row
    strided: bool  # inner units lie apart in source or target
    split: bool  # there are several outer indices, and each has several rows
    far: bool  # offsets within a row are beyond 32 bits


class Strides(NamedTuple):
    """16 times those of a row's batch, of the next row, of the next token and of the next unit within a row."""

    batch: int
    row: int
    token: int
    inner: int


class Fold(NamedTuple):
    """A tensor as [batch, outer, token, inner] units, of which outer and inner make rows; numbers are 16-fold.

    Triton compiles anew for every pattern of a tuple's integers that are divisible by 16 or equal to 1, whatever it is
    told; as they come, there is one pattern for all stages.
    """

    kind: Kind
    rows: int
    inner: int
    part: int  # how many of the inner units a row is further on than the one before
    parts: int  # rows of each outer index
    source: Strides
    target: Strides


# The keys and values of all layers fold alike, and so do the next prompt's.
@functools.lru_cache(maxsize=1024)
def fold(
    given: tuple[int, ...],
    strides: tuple[int, ...],
    size: int,
    aligned: int,
    shape: tuple[int, ...],
    batch: int | None,
    token: int,
) -> Fold | None:
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
        Strides(*(16 * stride for stride in numbers))
        for numbers in zip(along, apart, (strides[token], own[token]), between, strict=True)
    )
    split = outer > 1 and parts > 1
    return Fold(
        Kind(word, unit // word, block, between != [1, 1], split, max(reach) >= 1 << 31),
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

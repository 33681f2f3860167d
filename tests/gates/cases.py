"""What the gate compiles: the launchers, over the head dims, dtypes and options that change the code that comes out.

To add a case add a line to `CASES` or, for what several launches have in common, to `PROMPTS`; limits are in `limits.py`.
A case makes one launch of each kernel: numbers are kept by case and kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from adatp_kernels.ops.arguments import PackedScoring, Pruning, Scoring, Selection
from adatp_kernels.ops.triton import column_sums, column_sums_varlen, gather, select, stage

Run = Callable[[], object]
HEADS, KV_HEADS, HIDDEN = 28, 4, 3584


def _cases() -> Iterator[tuple[str, Run]]:
    half, full = torch.bfloat16, torch.float32
    yield "score bfloat16 D=128, LSE given", lambda: score(half, 128, lse=full)
    yield "score bfloat16 D=128, LSE in float64", lambda: score(half, 128, lse=torch.float64)
    yield "score bfloat16 D=128, one row", lambda: score(half, 128, rows=1)
    yield "score bfloat16 D=128, masks", lambda: score(half, 128, masks=True)
    # float16 compiles to bfloat16's code but for the names of instructions, head dims up to 127 to that of 128.
    for dtype, dims in ((half, (8, 64, 80, 128, 256)), (torch.float16, (128,)), (full, (64, 128, 256))):
        for dim in dims:
            yield f"score {_name(dtype)} D={dim}", lambda dtype=dtype, dim=dim: score(dtype, dim)
    yield "packed bfloat16 D=128, LSE given", lambda: packed(half, 128, lse=full)
    yield "packed bfloat16 D=128, LSE in float64", lambda: packed(half, 128, lse=torch.float64)
    for dtype, dim in ((half, 64), (half, 128), (half, 256), (full, 128)):
        yield f"packed {_name(dtype)} D={dim}", lambda dtype=dtype, dim=dim: packed(dtype, dim)
    yield "stage, the first", lambda: whole_stage(lse=True)
    yield "stage after the first", lambda: whole_stage(lse=True, first=False)
    # In a segment's range are as many columns; None: segments lie anywhere.
    for dedup, positions, longest in (
        ("strict", 196, 3136), ("strict", 3000, 3000), ("soft", 196, 784), ("off", 196, 784), ("strict", 196, 6272),
        ("strict", 196, None), ("strict", 3000, None), ("soft", 196, None), ("off", 196, None),
    ):  # fmt: skip
        yield (
            f"select {dedup}, {positions} of {longest or 'any'}",
            lambda dedup=dedup, positions=positions, longest=longest: choose(dedup, positions, longest),
        )
    yield "select strict, a prior", lambda: choose("strict", 196, 784, prior=True)
    yield "select off, one segment of 100,352", lambda: choose("off", 196, None, segments=1, columns=100352)
    yield "gather of eight prompts", lambda: move(8, tensors=[torch.empty(8, 1500, HIDDEN, dtype=half)], dims=[(0, 1)])
    yield "gather of 16 layers' caches", lambda: move(1, *travelling(6350, layers=16))


def _prompts() -> Iterator[tuple[str, Run]]:
    """What is launched, and how often Triton would compile a kernel on the way; nothing here is compiled."""
    for lse in (True, False):
        yield f"a stage{_given(lse)}", lambda lse=lse: whole_stage(lse=lse)
    # Numbers of tokens that are odd, round, and 1.
    odd = (1000, 800, 777, 512, 333, 160, 48, 17, 16, 1)
    for lse, batch in ((True, 1), (False, 1), (True, 3)):
        yield f"9 stages, batch {batch}{_given(lse)}", lambda lse=lse, batch=batch: stages(odd, lse=lse, batch=batch)
    # AdaTP's own 15 stages of 32 frames, whose numbers of tokens follow from a target of 0.273.
    usual = tuple(round(6272 * 0.8516**layer) for layer in range(16))
    yield "15 stages", lambda: stages(usual, lse=True)
    yield "15 stages, compact_cache", lambda: stages(usual, lse=True, compact_cache=True)
    # Of the masks of padded prompts, the rows' begins wherever the stage's text does.
    yield "9 stages, masks", lambda: stages(odd, lse=False, batch=3, masks=True)
    yield "packed batches of 4 sizes", packed_batches
    yield (
        "long segments, odd and even",
        lambda: [choose("soft", cells, 3136, segments=n) for n, cells in ((3, 169), (4, 196))],
    )
    yield (
        "scores aligned and not, prior and none",
        lambda: (choose("strict", 196, 784), choose("strict", 196, 784, True, first=1)),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _given(lse: bool) -> str:
    return ", LSE given" if lse else ", no LSE"


def score(dtype: torch.dtype, dim: int, rows: int = 64, lse: torch.dtype | None = None, masks: bool = False) -> None:
    query, key = attention(dtype, dim, rows)
    scoring = Scoring(
        query,
        key,
        query_start=1400,
        key_range=(14, 1400),
        scale=0.1,
        lse=None if lse is None else torch.empty(1, HEADS, rows, dtype=lse),
        key_mask=torch.ones(1, 1500, dtype=torch.bool) if masks else None,
        query_mask=torch.ones(1, rows, dtype=torch.bool) if masks else None,
    )
    column_sums.column_sums(scoring)


def attention(dtype: torch.dtype, dim: int, rows: int, keys: int = 1500) -> tuple[Tensor, Tensor]:
    return torch.empty(1, HEADS, rows, dim, dtype=dtype), torch.empty(1, KV_HEADS, keys, dim, dtype=dtype)


def packed(dtype: torch.dtype, dim: int, total: int = 3000, lse: torch.dtype | None = None) -> None:
    query, key = torch.empty(total, HEADS, dim, dtype=dtype), torch.empty(total, KV_HEADS, dim, dtype=dtype)
    lengths = {name: torch.zeros(10, dtype=torch.int32)[total % 2 :][:9] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    ranges = torch.zeros(8, 2, dtype=torch.int32)
    scoring = PackedScoring(
        query,
        key,
        **lengths,
        query_range=ranges,
        key_range=ranges,
        scale=0.1,
        lse=None if lse is None else torch.empty(HEADS, total, dtype=lse),
        query_mask=None,
    )
    column_sums_varlen.column_sums_varlen(scoring)


def packed_batches() -> None:
    for total, lse in itertools.product((3000, 1777, 1024, 17), (None, torch.float32)):
        packed(torch.bfloat16, 128, total, lse)


def choose(
    dedup: str,
    positions: int,
    longest: int | None,
    prior: bool = False,
    segments: int = 32,
    first: int = 0,
    columns: int = 6272,
) -> None:
    ids, limits = torch.zeros(1, columns, dtype=torch.int64), torch.ones(1, segments, 4, dtype=torch.int64)
    selection = Selection(
        ids, ids, limits[..., 0], dedup, 0.5, torch.empty(1, columns) if prior else None, 640, positions,
        None if longest is None else limits[..., 1:], longest,
    )  # fmt: skip
    select.select(torch.empty(1, columns + 8)[:, first : first + columns], selection)


def move(batch: int, tensors: list[Tensor], dims: list[tuple[int, int]]) -> None:
    gather.gather(torch.zeros(batch, 400, dtype=torch.int64), tensors, dims)


def travelling(length: int, layers: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """What moves with a prompt's tokens: hidden states, cosines and sines, caches, and what the pruner knows of them."""
    half = torch.bfloat16
    tensors = [torch.empty(1, length, width, dtype=half) for width in (HIDDEN, 128, 128)]
    caches = [torch.empty(1, KV_HEADS, length, 128, dtype=half) for _ in range(2 * layers)]
    known = torch.empty(2, 1, length, dtype=torch.int64)
    return [*tensors, *caches, known], [(0, 1)] * 3 + [(0, 2)] * 2 * layers + [(1, 2)]


def with_masks(length: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """As models with several position ids a token and a mask of their own hand it over, and one layer's cache."""
    tensors, dims = travelling(length, layers=1)
    positions = torch.empty(3, 1, length, dtype=torch.int64)
    mask = torch.empty(1, 1, length, length, dtype=torch.bool)
    return [*tensors[:3], positions, mask, *tensors[3:5]], [*dims[:3], (1, 2), (0, 3), *dims[3:5]]


def of_a_batch(batch: int, length: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Without caches, as the pruner moves it; cosines and sines are shared by the batch."""
    tensors, dims = travelling(length, layers=0)
    known = tensors[3].expand(-1, batch, -1).contiguous()
    return [torch.empty(batch, length, HIDDEN, dtype=torch.bfloat16), *tensors[1:3], known], dims


def whole_stage(
    *,
    lse: bool,
    first: bool = True,
    columns: int = 1386,
    kept: int = 300,
    batch: int = 1,
    layers: int | None = None,
    masks: bool = False,
) -> None:
    """One stage as the pruner runs it: the first deduplicates; `layers` caches move along with `compact_cache`."""
    length = 14 + columns + 98
    query, key = (tensor.expand(batch, -1, -1, -1) for tensor in attention(torch.bfloat16, 128, length, length))
    query, lses = query[:, :, -64:], torch.empty(batch, HEADS, length)[:, :, -64:]
    if layers is not None:
        tensors, dims = travelling(length, layers)
    else:
        tensors, dims = with_masks(length) if batch == 1 else of_a_batch(batch, length)
    ids = torch.zeros(batch, length, dtype=torch.int64)[:, 14 : 14 + columns]
    mask = torch.empty(batch, length, dtype=torch.bool) if masks else None
    asking = mask if mask is None else mask[:, -64:]
    scoring = Scoring(query, key, length - 64, (14, 14 + columns), 0.1, lses if lse else None, mask, asking)
    limits = torch.ones(8, batch, 32, 4, dtype=torch.int64)[3]
    dedup, longest = ("strict", 784) if first else ("off", 196)
    selection = Selection(ids, ids, limits[..., 0], dedup, 0.0, None, kept, 196, limits[..., 1:], longest)
    stage.prune(Pruning(scoring, selection, None, tensors, dims, 0, lambda phase: None))


def stages(
    numbers: tuple[int, ...], *, lse: bool, batch: int = 1, compact_cache: bool = False, masks: bool = False
) -> None:
    """The stages after layers 0, 1, 2 … of one prompt, from each number of visual tokens to the next."""
    for layer, (columns, kept) in enumerate(itertools.pairwise(numbers)):
        layers = None if batch > 1 else layer + 2 if compact_cache else 0
        whole_stage(lse=lse, first=layer == 0, columns=columns, kept=kept, batch=batch, layers=layers, masks=masks)


CASES = dict(_cases())
PROMPTS = dict(_prompts())

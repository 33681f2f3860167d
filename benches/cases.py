"""The cases that are timed: their inputs, their variants, what they must move and compute, and what is right.

LLaVA-OneVision-7B's layer in bfloat16 on a GPU; smaller, and in float32, on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import baselines
import torch
from measure import ON_GPU
from torch import Tensor

from adatp_kernels import Stage, ops
from adatp_kernels.ops.native import cuda
from adatp_kernels.ops.native.build import Library

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
HIDDEN = 3584
CELLS = 196
BEFORE = 14  # text tokens before the video
FAST = "triton" if ON_GPU else "auto"
# What is ours, by what its variants' names end with; the CUDA library joins in where it can be built.
OURS = {"": FAST, **({" (native)": "native"} if ON_GPU and isinstance(cuda.load(), Library) else {})}

VISUAL = (6272, 12544, 25088, 100352) if ON_GPU else (784, 1568)
TEXT = (1, 16, 64, 256) if ON_GPU else (1, 16, 64)
BATCH = (1, 8) if ON_GPU else (1,)


@dataclass
class Case:
    """One shape of one suite.

    Attributes
    ----------
    make : callable (seed) -> inputs
        Fresh random inputs on the device.
    variants : dict of str to callable (inputs) -> result
    check : callable (name, result, inputs)
        Raises if a variant's result is wrong.
    bytes, flop : int
        The fewest that any version moves and computes.
    """

    suite: str
    shape: dict[str, Any]
    make: Callable[[int], tuple]
    variants: dict[str, Callable[..., Any]]
    check: Callable[[str, Any, tuple], None]
    bytes: int
    flop: int
    verified: set[str] = field(default_factory=set)

    @property
    def ours(self) -> set[str]:
        """The variants that are this package's."""
        return {name for name in self.variants if name.startswith("adatp")}

    @property
    def title(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.shape.items())

    def __str__(self) -> str:
        return self.title

    def verify(self, name: str) -> None:
        """Check a variant on inputs of its own, once per process."""
        if name not in self.verified:
            inputs = self.make(1234)
            self.check(name, self.variants[name](*inputs), inputs)
            self.verified.add(name)


def _attention(visual: int, text: int, batch: int, seed: int, all_rows: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    length = BEFORE + visual + text
    shape = (batch, HEADS, length if all_rows else text, HEAD_DIM)
    query = torch.randn(shape, generator=generator, device=DEVICE, dtype=DTYPE)
    return query, torch.randn(batch, KV_HEADS, length, HEAD_DIM, generator=generator, device=DEVICE, dtype=DTYPE)


def _score_floor(visual: int, text: int, batch: int) -> tuple[int, int]:
    size = DTYPE.itemsize
    read = batch * (KV_HEADS * visual + HEADS * text) * HEAD_DIM * size
    return read + batch * visual * 4, 2 * batch * HEADS * text * visual * HEAD_DIM


def column_sums() -> Iterator[Case]:
    """Scores of all visual columns, with the LSE given and without."""
    for batch in BATCH:
        for visual in VISUAL:
            for text in TEXT:
                yield _column_sums(visual, text, batch)
    yield _packed()


def _column_sums(visual: int, text: int, batch: int) -> Case:
    columns, start = slice(BEFORE, BEFORE + visual), BEFORE + visual
    where = {"query_start": start, "key_range": (columns.start, columns.stop)}
    with_map = batch == 1 and visual == VISUAL[0] and text == 64  # it is so slow that once is enough to see it

    def make(seed: int) -> tuple:
        query, key = _attention(visual, text, batch, seed, all_rows=with_map)
        lse = ops.row_lse(query[:, :, -text:], key, query_start=start)
        return query, key, lse

    def check(name: str, result: Tensor, inputs: tuple) -> None:
        query, key, _ = (tensor[:1].double() for tensor in inputs)
        exact = baselines.text_rows(query, key, text, columns)
        error = (result[:1].double() - exact).norm() / exact.norm()
        assert error < (1e-2 if torch.bfloat16 == DTYPE else 1e-5), f"{name} is off by {error:.1e}"

    def ours(query: Tensor, key: Tensor, lse: Tensor | None, backend: str) -> Tensor:
        return ops.column_sums(query[:, :, -text:], key, lse=lse, backend=backend, **where)

    variants: dict[str, Callable] = {}
    for name, backend in OURS.items():
        variants[f"adatp, LSE given{name}"] = lambda q, k, lse, b=backend: ours(q, k, lse, b)
        variants[f"adatp{name}"] = lambda q, k, lse, b=backend: ours(q, k, None, b)
    variants["text rows in torch"] = lambda q, k, lse: baselines.text_rows(q, k, text, columns)
    if with_map:
        variants["materialised map"] = lambda q, k, lse: baselines.materialised_map(q, k, text, columns)
    moved, flop = _score_floor(visual, text, batch)
    shape = {"N": visual, "T": text, "batch": batch}
    return Case("column_sums", shape, make, variants, check, moved, flop)


def _packed() -> Case:
    """Eight prompts of different lengths one after the other, against one call a prompt."""
    text, visual = 64, [VISUAL[0] * part // 8 for part in range(1, 9)]
    lengths = [BEFORE + columns + text for columns in visual]
    rows = torch.arange(0, 9 * text, text, device=DEVICE, dtype=torch.int32)
    keys = torch.tensor([0, *itertools.accumulate(lengths)], device=DEVICE, dtype=torch.int32)
    columns = torch.tensor([[BEFORE, BEFORE + count] for count in visual], device=DEVICE)
    bounds = list(itertools.pairwise(keys.tolist()))

    def make(seed: int) -> tuple:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        query = torch.randn(8 * text, HEADS, HEAD_DIM, generator=generator, device=DEVICE, dtype=DTYPE)
        key = torch.randn(sum(lengths), KV_HEADS, HEAD_DIM, generator=generator, device=DEVICE, dtype=DTYPE)
        return query, key

    def ours(query: Tensor, key: Tensor) -> Tensor:
        return ops.column_sums_varlen(query, key, cu_seqlens_q=rows, cu_seqlens_k=keys, key_range=columns, backend=FAST)

    def each(query: Tensor, key: Tensor) -> Tensor:
        scores = torch.zeros(len(key), device=DEVICE, dtype=torch.promote_types(query.dtype, torch.float32))
        for number, (first, end) in enumerate(bounds):
            q, k = query[None, number * text : (number + 1) * text], key[None, first:end]
            scored = slice(BEFORE, BEFORE + visual[number])
            scores[first:end][scored] = baselines.text_rows(q.transpose(1, 2), k.transpose(1, 2), text, scored)[0]
        return scores

    def check(name: str, result: Tensor, inputs: tuple) -> None:
        exact = each(*(tensor.double() for tensor in inputs))
        error = (result.double() - exact).norm() / exact.norm()
        assert error < (1e-2 if torch.bfloat16 == DTYPE else 1e-5), f"{name} is off by {error:.1e}"

    moved, flop = (sum(part) for part in zip(*(_score_floor(count, text, 1) for count in visual), strict=True))
    shape = {"N": sum(visual), "T": text, "packed": 8}
    return Case("column_sums", shape, make, {"adatp": ours, "text rows in torch": each}, check, moved, flop)


def _video(visual: int) -> tuple[int, Tensor, Tensor]:
    """Segments of four frames: how many, and of every column its segment and position."""
    frames = visual // CELLS
    segments = frames // 4
    ids = torch.arange(frames, device=DEVICE).div(4, rounding_mode="floor").repeat_interleave(CELLS)
    return segments, ids, torch.arange(CELLS, device=DEVICE).repeat(frames)


def select() -> Iterator[Case]:
    """AdaTP's selection by segment, and FastV's, which is one segment without deduplication."""
    for batch in BATCH:
        for visual in VISUAL:
            for dedup in ("strict", "off"):
                yield _select(visual, batch, dedup)


def _select(visual: int, batch: int, dedup: str) -> Case:
    segments, ids, positions = _video(visual)
    if dedup == "off":
        segments, ids = 1, torch.zeros_like(ids)
    kept = visual // 8 // segments
    budgets = torch.full((batch, segments), kept, device=DEVICE)
    known = {"num_selected": segments * kept, "num_positions": CELLS, "dedup": dedup}

    def make(seed: int) -> tuple:
        # A permutation, so that the baselines, which have no rule for ties, have none to break.
        generator = torch.Generator(DEVICE).manual_seed(seed)
        noise = torch.rand(batch, visual, generator=generator, device=DEVICE)
        return ((noise.argsort(1) + 1).float() / visual**2,)

    def check(name: str, result: Tensor, inputs: tuple) -> None:
        assert result.equal(ops.select(inputs[0], ids, positions, budgets, backend="reference", **known)), name

    variants: dict[str, Callable] = {
        f"adatp{name}": lambda scores, b=backend: ops.select(scores, ids, positions, budgets, backend=b, **known)
        for name, backend in OURS.items()
    }
    if dedup == "strict":
        variants["amax + topk + sort"] = lambda s: baselines.deduplicate_topk_and_sort(s, segments, CELLS, kept)
    else:
        variants["topk + sort"] = lambda scores: baselines.topk_and_sort(scores, kept)
    moved = batch * (visual * (4 + 8 + 8) + segments * kept * 8)
    shape = {"N": visual, "batch": batch, "kept": f"1/8 {dedup}"}
    return Case("select", shape, make, variants, check, moved, 0)


def _travelling(length: int, batch: int, seed: int) -> list[Tensor]:
    """Hidden states, cos, sin, and one layer's keys and values."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shapes = [(batch, length, HIDDEN), *[(1, length, HEAD_DIM)] * 2, *[(batch, KV_HEADS, length, HEAD_DIM)] * 2]
    return [torch.randn(shape, generator=generator, device=DEVICE, dtype=DTYPE) for shape in shapes]


DIMS = [1, 1, 1, 2, 2]


def _gather_bytes(kept: int, batch: int) -> int:
    return 2 * kept * (batch * (HIDDEN + 2 * KV_HEADS * HEAD_DIM) + 2 * HEAD_DIM) * DTYPE.itemsize


def gather() -> Iterator[Case]:
    """Hidden states, cos, sin and one layer's KV, at several shares kept."""
    for batch in BATCH:
        for visual in VISUAL:
            for share in (10, 25, 50):
                yield _gather(visual, batch, share)


def _gather(visual: int, batch: int, share: int) -> Case:
    kept = visual * share // 100

    def make(seed: int) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.randperm(visual, generator=generator)[:kept].sort().values for _ in range(batch)]
        return torch.stack(rows).to(DEVICE), _travelling(visual, batch, seed)

    def check(name: str, result: Any, inputs: tuple) -> None:
        indices, tensors = inputs
        for actual, wanted in zip(result, ops.gather(indices, *tensors, dims=DIMS, backend="reference"), strict=True):
            assert actual.equal(wanted), name

    expanded = lambda tensors: [t.expand(batch, *t.shape[1:]) for t in tensors]  # noqa: E731
    variants = {
        "adatp": lambda indices, tensors: ops.gather(indices, *tensors, dims=DIMS, backend=FAST),
        "gather each": lambda indices, tensors: baselines.gather_each(indices, expanded(tensors), DIMS),
    }
    if batch == 1:
        variants["index_select each"] = lambda indices, tensors: baselines.index_select(indices, tensors, DIMS)
    shape = {"N": visual, "batch": batch, "kept": f"{share} %"}
    return Case("gather", shape, make, variants, check, _gather_bytes(kept, batch), 0)


def stage() -> Iterator[Case]:
    """Score, select and gather: a whole stage, against the same in plain torch."""
    for batch in BATCH:
        for visual in VISUAL:
            yield _stage(visual, 64, batch)


def _stage(visual: int, text: int, batch: int) -> Case:
    segments, ids, positions = _video(visual)
    each = CELLS // 2
    columns, start = slice(BEFORE, BEFORE + visual), BEFORE + visual
    length = BEFORE + visual + text
    chosen = Stage(1, (each,) * segments, each * segments)
    budgets = torch.full((segments,), each, device=DEVICE)
    survivors = BEFORE + text + chosen.total

    def make(seed: int) -> tuple:
        query, key = _attention(visual, text, batch, seed, all_rows=False)
        return query, key, ops.row_lse(query, key, query_start=start), _travelling(length, batch, seed)

    def ours(query: Tensor, key: Tensor, lse: Tensor | None, tensors: list[Tensor], backend: str) -> Any:
        return ops.prune(
            query, key, tensors, chosen, dims=DIMS, segments=ids, positions=positions, query_start=start,
            key_range=(columns.start, columns.stop), lse=lse, budgets=budgets, num_selected=chosen.total,
            num_positions=CELLS, backend=backend,
        )  # fmt: skip

    def plain(query: Tensor, key: Tensor, lse: Tensor, tensors: list[Tensor]) -> Any:
        scores = baselines.text_rows(query, key, text, columns)
        kept = baselines.deduplicate_topk_and_sort(scores, segments, CELLS, each) + BEFORE
        before = torch.arange(BEFORE, device=DEVICE).expand(batch, -1)
        after = torch.arange(start, length, device=DEVICE).expand(batch, -1)
        indices = torch.cat([before, kept, after], dim=1)
        return indices, baselines.gather_each(indices, [t.expand(batch, *t.shape[1:]) for t in tensors], DIMS)

    def check(name: str, result: Any, inputs: tuple) -> None:
        indices, moved = result
        wanted = ops.gather(indices, *inputs[3], dims=DIMS, backend="reference")
        assert all(actual.equal(right) for actual, right in zip(moved, wanted, strict=True)), name
        # Scores of different rounding may rank neighbours differently at the edge of a budget.
        expected, _ = ours(*inputs, backend="reference")
        same = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(indices, expected, strict=True))
        assert same >= (0.99 if torch.bfloat16 == DTYPE else 0.999) * expected.numel(), name

    moved, flop = _score_floor(visual, text, batch)
    moved += batch * visual * 16 + _gather_bytes(survivors, batch)
    variants: dict[str, Callable] = {}
    for name, backend in OURS.items():
        variants[f"adatp, LSE given{name}"] = lambda q, k, lse, tensors, b=backend: ours(q, k, lse, tensors, b)
        variants[f"adatp{name}"] = lambda q, k, lse, tensors, b=backend: ours(q, k, None, tensors, b)
    variants["plain torch"] = plain
    shape = {"N": visual, "T": text, "batch": batch}
    return Case("stage", shape, make, variants, check, moved, flop)

"""AdaTP's selection by segment, and FastV's, which is one segment without deduplication."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import baselines
import torch
from torch import Tensor

from adatp_kernels import ops
from cases.case import Case, Scale, Variant

FRAMES = 4  # of a segment


def suite(scale: Scale, visual: tuple[int, ...]) -> Iterator[Case]:
    """Both kinds at every size."""
    for columns, dedup in itertools.product(visual, ("strict", "off")):
        yield select(scale, columns, dedup)


def segment_table(scale: Scale, visual: int) -> tuple[int, Tensor, Tensor]:
    """Segments of `FRAMES` frames: how many, and of every column its segment and position."""
    frames = visual // scale.cells
    ids = torch.arange(frames, device=scale.device).div(FRAMES, rounding_mode="floor").repeat_interleave(scale.cells)
    return frames // FRAMES, ids, torch.arange(scale.cells, device=scale.device).repeat(frames)


def select(scale: Scale, visual: int, dedup: str, batch: int = 1) -> Case:
    """An eighth of the columns is kept. Whatever is read is among the inputs, so that a cold call finds none of it."""
    segments, ids, positions = segment_table(scale, visual)
    if dedup == "off":
        segments, ids = 1, torch.zeros_like(ids)
    kept = visual // 8 // segments
    budgets = torch.full((batch, segments), kept, device=scale.device)
    known = {"num_selected": segments * kept, "num_positions": scale.cells, "dedup": dedup}

    def make(seed: int) -> tuple:
        # A permutation, so that the baselines, which have no rule for ties, have none to break.
        generator = torch.Generator(scale.device).manual_seed(seed)
        noise = torch.rand(batch, visual, generator=generator, device=scale.device)
        return (noise.argsort(1) + 1).float() / visual**2, ids.clone(), positions.clone(), budgets.clone()

    def check(name: str, result: Tensor, inputs: tuple) -> None:
        assert result.equal(ops.select(*inputs, backend="reference", **known)), f"{name} chooses other columns"

    variants = {
        f"adatp{name}": Variant(lambda *inputs, b=backend: ops.select(*inputs, backend=b, **known), backend)
        for name, backend in scale.backends.items()
    }
    absent = {}
    if dedup == "strict":
        # What the pruner tells besides; so little that a cold call may find it in the cache.
        first = torch.arange(segments, device=scale.device) * FRAMES * scale.cells
        ranges = torch.stack(
            [first, first + FRAMES * scale.cells, torch.arange(segments, device=scale.device) * kept], 1
        )
        told = known | {"segment_ranges": ranges, "longest_segment": FRAMES * scale.cells}
        variants |= {
            f"adatp, ranges told{name}": Variant(
                lambda *inputs, b=backend: ops.select(*inputs, backend=b, **told), backend
            )
            for name, backend in scale.backends.items()
            if backend == "triton"
        }
        variants["amax + topk + sort"] = Variant(
            lambda scores, *_: baselines.deduplicate_topk_and_sort(scores, segments, scale.cells, kept)
        )
    else:
        variants["topk + sort"] = Variant(lambda scores, *_: baselines.topk_and_sort(scores, kept))
        rival, reason = baselines.flashinfer_topk(scale.device)
        if rival is not None:
            variants["flashinfer + sort"] = Variant(lambda scores, *_: rival(scores, kept))
        absent = {} if reason is None else {"flashinfer + sort": reason}
    # What is read besides the scores depends on the variant; the fewest is the scores and what is kept of them.
    moved = batch * (visual * 4 + segments * kept * 8)
    shape = {"N": visual, "batch": batch, "segments": segments, "kept": f"1/8 {dedup}"}
    return Case("select", shape, make, variants, check, moved, 0, absent=absent)

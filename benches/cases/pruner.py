"""Stages as a decoder runs them, by `AdaTPPruner`: with all that it knows beforehand, which `ops.prune` has to be told.

The first stage finds one column of every position of a segment; the later ones find them deduplicated. FastV's only stage
has one segment of the whole video, and is scored by one row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import baselines
import torch
from torch import Tensor

import adatp_kernels as adatp
from adatp_kernels import ops
from cases.case import DIMS, Case, Scale, Variant, assert_chosen, moved_bytes, score_floor, travelling
from cases.stage import moved, with_text

FRAMES = (
    2  # of a segment: so that half of the video outlives the first stage, and the later ones have something to drop
)
LAYERS, MLP = 28, 18944


def stage(scale: Scale, visual: int, text: int, number: int, method: str = "adatp") -> Case:
    """One prompt's stage `number`, counted from 1, of those that drop something."""
    config = adatp.AdaTPConfig.preset(method, target_flops=0.273)
    frames = visual // scale.cells
    layout = adatp.VisualLayout.grid(num_frames=frames, positions_per_frame=scale.cells, start=scale.before)
    per_segment = frames if method == "fastv" else FRAMES
    segments = torch.arange(frames) // per_segment
    length = scale.before + visual + text
    rows = 1 if config.queries == "last" else text
    pruners = {
        backend: adatp.AdaTPPruner(
            dataclasses.replace(config, backend=backend),
            num_layers=LAYERS, hidden_size=scale.hidden, key_width=scale.kv_heads * scale.head_dim, mlp_width=MLP,
        )
        for backend in ("reference", *scale.backends.values())
    }  # fmt: skip

    def attention(tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(scale.device).manual_seed(seed)
        random = {"generator": generator, "device": scale.device, "dtype": scale.dtype}
        query = torch.randn(1, scale.heads, tokens, scale.head_dim, **random)
        key = torch.randn(1, scale.kv_heads, tokens, scale.head_dim, **random)
        lse = torch.zeros(
            1, scale.heads, tokens, device=scale.device
        )  # of the rows that score alone: no one reads others
        asking = query[:, :, -rows:]
        lse[:, :, -rows:] = ops.row_lse(asking, key, query_start=tokens - rows, backend="reference")
        return query, key, lse

    def make(seed: int) -> tuple:
        state = pruners["reference"].begin(layout, length, segments=segments, device=scale.device)
        for before in range(1, number):
            state, _ = pruners["reference"](state, *attention(state.length, seed + 7919 * before)[:2], (), dims=())
        query, key, lse = attention(state.length, seed)
        return query, key, lse, travelling(scale, state.length, 1, seed), state

    def ours(query: Tensor, key: Tensor, lse: Tensor | None, tensors: list[Tensor], state: Any, backend: str) -> Any:
        state, left = pruners[backend](state, query, key, tensors, dims=DIMS, lse=lse)
        return state.kept, left

    first = make(0)[-1]
    running = next(stage for stage in first.plan.stages if stage.layer == first.next_layer)
    seen = [stage.budgets for stage in first.plan.stages if stage.layer < running.layer]
    sizes = seen[-1] if seen else [visual // len(running.budgets)] * len(running.budgets)
    remaining, tokens = sum(sizes), first.length
    start = scale.before + remaining
    by_segment = baselines.SegmentTopk(sizes, running.budgets, scale.device)
    deduplicate = number == 1 and config.spatial_dedup == "strict"

    def plain(query: Tensor, key: Tensor, lse: Tensor, tensors: list[Tensor], state: Any) -> Any:
        scores = baselines.grouped_rows_given_lse(query, key, lse[:, :, -rows:], rows, slice(scale.before, start))
        if deduplicate:
            kept = baselines.deduplicate_topk_and_sort(scores, len(sizes), scale.cells, running.budgets[0])
        else:
            kept = by_segment(scores)
        indices = with_text(kept + scale.before, scale.before, start, tokens)
        return state.kept.index_select(1, indices[0]), moved(indices, tensors)

    def check(name: str, result: Any, inputs: tuple) -> None:
        (kept, tensors), state = result, inputs[4]
        assert kept.shape == (1, scale.before + running.total + text), f"{name} keeps {list(kept.shape)}"
        indices = torch.searchsorted(state.kept, kept)
        wanted = ops.gather(indices, *inputs[3], dims=DIMS, backend="reference")
        assert all(a.equal(b) for a, b in zip(tensors, wanted, strict=True)), f"{name} moves something else"
        assert_chosen(scale, name, kept, ours(*inputs, backend="reference")[0])

    variants: dict[str, Variant] = {}
    for name, backend in scale.backends.items():
        variants[f"adatp, LSE given{name}"] = Variant(
            lambda q, k, lse, *r, b=backend: ours(q, k, lse, *r, backend=b), backend
        )
        variants[f"adatp{name}"] = Variant(lambda q, k, lse, *r, b=backend: ours(q, k, None, *r, backend=b), backend)
    absent = {}
    if not deduplicate or len(set(running.budgets)) == 1:
        variants["plain torch, LSE given"] = Variant(plain)
    else:
        absent["plain torch, LSE given"] = f"it wants equal budgets, and the plan has {set(running.budgets)}"
    bytes_moved, flop = score_floor(scale, remaining, rows, 1)
    bytes_moved += moved_bytes(scale, scale.before + running.total + text, 1)
    shape = {"N": remaining, "T": rows, "batch": 1, "stage": f"{method} {number}", "segments": len(sizes)}
    return Case("pruner", shape, make, variants, check, bytes_moved, flop, operation="stage", absent=absent)

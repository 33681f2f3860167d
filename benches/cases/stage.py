"""A whole stage, score, select and gather in one call of `ops.prune`, against the same in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import baselines
import torch
from torch import Tensor

from adatp_kernels import Stage, ops
from cases.case import (
    DIMS,
    Case,
    Scale,
    Variant,
    assert_chosen,
    attention_inputs,
    moved_bytes,
    score_floor,
    travelling,
)  # fmt: skip
from cases.select import segment_table


def suite(scale: Scale, visual: tuple[int, ...]) -> Iterator[Case]:
    """With 64 text rows at every size."""
    for columns in visual:
        yield stage(scale, columns, 64)


def stage(scale: Scale, visual: int, text: int, batch: int = 1) -> Case:
    """The first stage: one column of every position of a segment, and of these the better half."""
    segments, ids, positions = segment_table(scale, visual)
    each = scale.cells // 2
    columns, start = slice(scale.before, scale.before + visual), scale.before + visual
    length = scale.before + visual + text
    chosen = Stage(1, (each,) * segments, each * segments)
    budgets = torch.full((segments,), each, device=scale.device)
    survivors = scale.before + text + chosen.total

    def make(seed: int) -> tuple:
        query, key = attention_inputs(scale, visual, text, batch, seed, text)
        lse = ops.row_lse(query, key, query_start=start, backend="reference")
        return (
            query,
            key,
            lse,
            travelling(scale, length, batch, seed),
            (ids.clone(), positions.clone(), budgets.clone()),
        )

    def ours(
        query: Tensor, key: Tensor, lse: Tensor | None, tensors: list[Tensor], known: tuple[Tensor, ...], backend: str
    ) -> Any:
        segment_ids, position_ids, limits = known
        return ops.prune(
            query, key, tensors, chosen, dims=DIMS, segments=segment_ids, positions=position_ids, query_start=start,
            key_range=(columns.start, columns.stop), lse=lse, budgets=limits, num_selected=chosen.total,
            num_positions=scale.cells, backend=backend,
        )  # fmt: skip

    def plain(query: Tensor, key: Tensor, lse: Tensor, tensors: list[Tensor], _: Any, given: bool) -> Any:
        if given:
            scores = baselines.grouped_rows_given_lse(query, key, lse, text, columns)
        else:
            scores = baselines.grouped_rows(query, key, text, columns)
        kept = baselines.deduplicate_topk_and_sort(scores, segments, scale.cells, each) + scale.before
        indices = with_text(kept, scale.before, start, length)
        return indices, moved(indices, tensors)

    def check(name: str, result: Any, inputs: tuple) -> None:
        indices, tensors = result
        wanted = ops.gather(indices, *inputs[3], dims=DIMS, backend="reference")
        assert all(a.equal(b) for a, b in zip(tensors, wanted, strict=True)), f"{name} moves something else"
        assert_chosen(scale, name, indices, ours(*inputs, backend="reference")[0])

    bytes_moved, flop = score_floor(scale, visual, text, batch)
    variants: dict[str, Variant] = {}
    for name, backend in scale.backends.items():
        variants[f"adatp, LSE given{name}"] = Variant(
            lambda q, k, lse, *rest, b=backend: ours(q, k, lse, *rest, b), backend
        )
        variants[f"adatp{name}"] = Variant(lambda q, k, lse, *rest, b=backend: ours(q, k, None, *rest, b), backend)
    variants["plain torch"] = Variant(lambda *inputs: plain(*inputs, given=False))
    variants["plain torch, LSE given"] = Variant(lambda *inputs: plain(*inputs, given=True))
    shape = {"N": visual, "T": text, "batch": batch}
    return Case("stage", shape, make, variants, check, bytes_moved + moved_bytes(scale, survivors, batch), flop)


def with_text(kept: Tensor, before: int, start: int, length: int) -> Tensor:
    """The kept columns [B, K] of the sequence, and all text around the video, ascending."""
    tokens = torch.arange(length, device=kept.device).expand(len(kept), -1)
    return torch.cat([tokens[:, :before], kept, tokens[:, start:]], dim=1)


def moved(indices: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """What plain torch does best: index_select for a single row, else a gather."""
    if len(indices) == 1:
        return baselines.index_select(indices, tensors, DIMS)
    return baselines.gather_each(indices, [t.expand(len(indices), *t.shape[1:]) for t in tensors], DIMS)

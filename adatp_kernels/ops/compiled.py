"""`prune` as an operator that torch.compile can put into a graph; eager mode calls the launchers directly."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.ops.arguments import Pruning, Scoring, Selection, moved_shape
from adatp_kernels.ops.dispatch import implementation


@torch.library.custom_op("adatp::prune", mutates_args=())
def prune_operator(
    query: Tensor,
    key: Tensor,
    tensors: list[Tensor],
    budgets: Tensor,
    dims: list[int],
    segments: Tensor,
    positions: Tensor,
    query_start: int,
    key_range: list[int],
    sequence_start: int,
    scale: float,
    lse: Tensor | None,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    scores: Tensor | None,
    dedup: str,
    soft_weight: float,
    prior: Tensor | None,
    num_selected: int,
    num_positions: int | None,
    segment_ranges: Tensor | None,
    longest_segment: int | None,
    backend: str,
) -> list[Tensor]:
    """The surviving tokens, and then `tensors` at them. ``dims`` holds (batch, token) of each tensor, one after the other."""
    scoring = Scoring(query, key, query_start, (key_range[0], key_range[1]), scale, lse, key_mask, query_mask)
    selection = Selection(
        segments, positions, budgets, dedup, soft_weight, prior, num_selected, num_positions, segment_ranges, longest_segment
    )  # fmt: skip
    pairs = list(zip(dims[::2], dims[1::2], strict=True))
    deciding = (query, key) if scores is None else (query, key, scores)
    run = implementation("prune", backend, *deciding, moved=tensors)
    indices, moved = run(Pruning(scoring, selection, scores, tensors, pairs, sequence_start, lambda phase: None))
    return [indices, *moved]


@prune_operator.register_fake
def _shapes(
    query: Any, key: Any, tensors: Any, budgets: Any, dims: Any, segments: Any, positions: Any, query_start: Any,
    key_range: Any, sequence_start: Any, scale: Any, lse: Any, key_mask: Any, query_mask: Any, scores: Any, dedup: Any,
    soft_weight: Any, prior: Any, num_selected: Any, num_positions: Any, segment_ranges: Any, longest_segment: Any,
    backend: Any,
) -> list[Tensor]:  # fmt: skip
    batch = key.shape[0]
    survivors = key.shape[2] - sequence_start - (key_range[1] - key_range[0]) + num_selected
    results = [key.new_empty((batch, survivors), dtype=torch.int64)]
    for tensor, *pair in zip(tensors, dims[::2], dims[1::2], strict=True):
        results.append(tensor.new_empty(moved_shape(tensor.shape, (pair[0], pair[1]), batch, survivors)))
    return results


def compiled_prune(pruning: Pruning, backend: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`prune` through the operator, whose schema has room for tensors and numbers only."""
    scoring = _named(pruning.scoring) | {"key_range": list(pruning.scoring.key_range)}
    indices, *moved = prune_operator(
        **scoring, **_named(pruning.selection), scores=pruning.scores, tensors=list(pruning.tensors),
        dims=[dim for pair in pruning.dims for dim in pair], sequence_start=pruning.sequence_start, backend=backend,
    )  # fmt: skip
    return indices, tuple(moved)


def _named(record: Scoring | Selection) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}

"""A whole pruning stage in three Triton launches: score, select, gather; a fourth where the LSE is not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.triton.column_sums import partial_column_sums
from adatp_kernels.ops.triton.gather import gather
from adatp_kernels.ops.triton.select import Partial, count_positions, select_tokens, too_sparse, workspace_for


def prune(
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    budgets: Tensor,
    *,
    dims: Sequence[tuple[int, int]],
    segments: Tensor,
    positions: Tensor,
    query_start: int,
    key_range: tuple[int, int],
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
    on_phase: Callable[[str], None],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`. The score kernel zeroes the workspace that the select kernel needs."""
    if num_positions is None:
        num_positions = count_positions(positions, segments, dedup)
    if too_sparse(budgets, dedup, num_positions):
        return reference.prune(
            query, key, tensors, budgets, dims=dims, segments=segments, positions=positions, query_start=query_start,
            key_range=key_range, sequence_start=sequence_start, scale=scale, lse=lse, key_mask=key_mask,
            query_mask=query_mask, scores=scores, dedup=dedup, soft_weight=soft_weight, prior=prior,
            num_selected=num_selected, num_positions=num_positions, on_phase=on_phase,
        )  # fmt: skip
    workspace = partial = None
    if scores is None and budgets.shape[1]:
        workspace = workspace_for(budgets, dedup, num_positions, zeroed=False)
    if scores is None:
        sums = partial_column_sums(
            query, key, query_start=query_start, key_range=key_range, scale=scale, lse=lse, key_mask=key_mask,
            query_mask=query_mask, workspace=workspace,
        )  # fmt: skip
        partial = Partial(sums, query_mask, query.shape[2], query.shape[1] // key.shape[1])
    on_phase("score")
    indices = select_tokens(
        scores, partial, segments, positions, budgets, dedup=dedup, soft_weight=soft_weight, prior=prior,
        num_selected=num_selected, num_positions=num_positions, workspace=workspace,
        first=key_range[0] - sequence_start, length=key.shape[2] - sequence_start,
    )  # fmt: skip
    on_phase("select")
    moved = gather(indices, tensors, dims)
    on_phase("compact")
    return indices, moved

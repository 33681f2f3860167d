"""A whole pruning stage in three Triton launches: score, select, gather; a fourth where the LSE is not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Scoring, Selection
from adatp_kernels.ops.positions import too_sparse, with_positions
from adatp_kernels.ops.triton.column_sums import partial_column_sums
from adatp_kernels.ops.triton.gather import gather
from adatp_kernels.ops.triton.select import Partial, select_tokens, workspace_for


def prune(
    scoring: Scoring,
    selection: Selection,
    scores: Tensor | None,
    tensors: Sequence[Tensor],
    dims: Sequence[tuple[int, int]],
    sequence_start: int,
    on_phase: Callable[[str], None],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`. The score kernel zeroes the workspace that the select kernel needs."""
    selection, num_positions = with_positions(selection)
    budgets, dedup = selection.budgets, selection.dedup
    if too_sparse(budgets, dedup, num_positions):
        return reference.prune(scoring, selection, scores, tensors, dims, sequence_start, on_phase)
    workspace = partial = None
    if scores is None:
        if budgets.shape[1]:
            workspace = workspace_for(budgets, dedup, num_positions, zeroed=False)
        sums = partial_column_sums(**vars(scoring), workspace=workspace)
        rows, group = scoring.query.shape[2], scoring.query.shape[1] // scoring.key.shape[1]
        partial = Partial(sums, scoring.query_mask, rows, group)
    on_phase("score")
    first, length = scoring.key_range[0] - sequence_start, scoring.key.shape[2] - sequence_start
    indices = select_tokens(scores, partial, **vars(selection), workspace=workspace, first=first, length=length)
    on_phase("select")
    moved = gather(indices, tensors, dims)
    on_phase("compact")
    return indices, moved

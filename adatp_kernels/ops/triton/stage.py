"""A whole pruning stage in three Triton launches: score, select, gather; more where the LSE is not given or segments are long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Scoring, Selection
from adatp_kernels.ops.positions import too_sparse, with_positions
from adatp_kernels.ops.triton.column_sums import partial_column_sums
from adatp_kernels.ops.triton.gather import gather
from adatp_kernels.ops.triton.ranking import Source
from adatp_kernels.ops.triton.select import Selecting


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
    if too_sparse(selection.budgets, selection.dedup, num_positions):
        return reference.prune(scoring, selection, scores, tensors, dims, sequence_start, on_phase)
    selecting = Selecting(selection, num_positions, zeroed=scores is not None)
    if scores is None:
        rows, group = scoring.query.shape[2], scoring.query.shape[1] // scoring.key.shape[1]
        sums = partial_column_sums(scoring, selecting.workspace)
        source = Source(None, sums, scoring.query_mask, selection.prior, rows, group)
    else:
        source = Source(scores, None, None, selection.prior)
    on_phase("score")
    first, length = scoring.key_range[0] - sequence_start, scoring.key.shape[2] - sequence_start
    indices = selecting.run(source, first, length, follows=scores is None)
    on_phase("select")
    moved = gather(indices, tensors, dims, follows=True)
    on_phase("compact")
    return indices, moved

"""A whole pruning stage in three Triton launches: score, select, gather; more where the LSE is not given or segments are long."""

from __future__ import annotations

from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Pruning
from adatp_kernels.ops.positions import too_sparse, with_positions
from adatp_kernels.ops.triton.column_sums import partial_column_sums
from adatp_kernels.ops.triton.gather import gather
from adatp_kernels.ops.triton.ranking import Source
from adatp_kernels.ops.triton.select import Selecting


def prune(pruning: Pruning) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`. The score kernel zeroes the workspace that the select kernel needs."""
    scoring, scores, on_phase = pruning.scoring, pruning.scores, pruning.on_phase
    selection, num_positions = with_positions(pruning.selection)
    if too_sparse(selection.budgets, selection.dedup, num_positions):
        return reference.prune(pruning)
    selecting = Selecting(selection, num_positions, zeroed=scores is not None)
    if scores is None:
        rows, group = scoring.query.shape[2], scoring.query.shape[1] // scoring.key.shape[1]
        sums = partial_column_sums(scoring, selecting.workspace)
        source = Source(None, sums, scoring.query_mask, selection.prior, rows, group)
    else:
        source = Source(scores, None, None, selection.prior)
    on_phase("score")
    indices = selecting.run(source, *pruning.sequence, follows=scores is None)
    on_phase("select")
    moved = gather(indices, pruning.tensors, pruning.dims, follows=True)
    on_phase("compact")
    return indices, moved

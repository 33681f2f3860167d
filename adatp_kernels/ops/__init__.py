"""The operations of one pruning stage, each with a choice of backends: score, select, gather, and their fusion."""

from adatp_kernels.ops.dispatch import backend_report
from adatp_kernels.ops.functional import column_sums, column_sums_varlen, gather, prune, row_lse, select

__all__ = ["backend_report", "column_sums", "column_sums_varlen", "gather", "prune", "row_lse", "select"]

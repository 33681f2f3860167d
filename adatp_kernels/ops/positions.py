"""How far positions reach: backends on a GPU keep a table of each segment's best column per position."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from adatp_kernels.ops.arguments import Selection

# Words of such a table, 512 MB; positions that reach further are left to the reference.
_LARGEST_TABLE = 1 << 26


def count_positions(positions: Tensor, segments: Tensor, dedup: str) -> int:
    """More than any visual column's position, for callers that were not told; waits for the device."""
    return 0 if dedup == "off" else max(0, int(positions.masked_fill(segments < 0, -1).max())) + 1


def with_positions(selection: Selection) -> tuple[Selection, int]:
    """`selection` with a number of positions, and that number."""
    number = selection.num_positions
    if number is not None:
        return selection, number
    number = count_positions(selection.positions, selection.segments, selection.dedup)
    return replace(selection, num_positions=number), number


def too_sparse(budgets: Tensor, dedup: str, num_positions: int) -> bool:
    """Whether the positions reach so far that a table of them would be out of proportion."""
    return dedup != "off" and budgets.numel() * num_positions > _LARGEST_TABLE

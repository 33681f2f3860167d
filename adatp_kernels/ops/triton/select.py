"""Debias and select: which way fits what is known of the segments.

| segments | way | launches |
|---|---|---|
| the host knows where they lie, and a program can hold the longest | `select_held.py` | 1 |
| the host knows where they lie; or there is only one | `select_split.py` | 5 or 6 |
| anywhere | `select_scattered.py` | 1, and a program walks its segment several times |
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Selection
from adatp_kernels.ops.positions import too_sparse, with_positions
from adatp_kernels.ops.triton import select_held, select_scattered, select_split
from adatp_kernels.ops.triton.ranking import Source


def select(scores: Tensor, selection: Selection) -> Tensor:
    """As `functional.select`."""
    selection, num_positions = with_positions(selection)
    if too_sparse(selection.budgets, selection.dedup, num_positions):
        return reference.select(scores, selection)
    source = Source(scores, None, None, selection.prior)
    return Selecting(selection, num_positions).run(source, first=0, length=scores.shape[1])


class Selecting:
    """One selection, and the workspace that it needs.

    Parameters
    ----------
    selection : Selection
    num_positions : int
        More than any position.
    zeroed : bool
        Whether `workspace` is to come zeroed, which costs a launch; otherwise somebody else must zero it first.
    """

    def __init__(self, selection: Selection, num_positions: int, *, zeroed: bool = True) -> None:
        if selection.budgets.shape[1] == 0:  # every column is always kept; one program is needed to say so
            budgets = selection.budgets.new_zeros(len(selection.budgets), 1)
            selection = replace(selection, budgets=budgets, segment_ranges=None, longest_segment=None)
        self.selection, self.num_positions = selection, num_positions
        self.way = _way(selection, num_positions)
        words = self.way.workspace_words(selection, num_positions)
        device = selection.budgets.device
        if zeroed and words:
            self.workspace = torch.zeros(words, dtype=torch.int64, device=device).view(torch.uint64)
        else:
            self.workspace = torch.empty(words, dtype=torch.uint64, device=device)

    def run(self, source: Source, first: int, length: int, *, follows: bool = False) -> Tensor:
        """The surviving tokens [B, first + K + rest] of a sequence whose columns begin at token `first`.

        Parameters
        ----------
        source : Source
            The scores.
        first, length : int
            Tokens before the columns, and in the whole sequence; all outside the columns survive.
        follows : bool
            Whether another of our kernels was launched last; see `overlap.py`.
        """
        batch, num_columns = self.selection.segments.shape
        survivors = length - num_columns + self.selection.num_selected
        kept = torch.empty(batch, survivors, dtype=torch.int64, device=self.workspace.device)
        self.way.select(source, self.selection, self.num_positions, self.workspace, kept, first, length, follows)
        return kept


def _way(selection: Selection, num_positions: int) -> ModuleType:
    longest = selection.longest_segment
    if longest is None and selection.budgets.shape[1] == 1:  # the one segment may have the whole row
        longest = selection.segments.shape[1]
    if longest is None:
        return select_scattered
    return select_held if select_held.fits(selection.dedup, num_positions, longest) else select_split

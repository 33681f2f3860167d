"""A batch of prompts that are pruned together: padded on the left to one length, before every stage and after it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adatp_kernels.errors import integer
from adatp_kernels.layout import VisualLayout
from adatp_kernels.segments import segment_bounds


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of any videos and texts in the rows of one tensor (``algorithm.md``, "The plan": dense batches).

    All rows keep one total of visual tokens, and the row with the longest text needs no padding beside them. A row
    whose text is shorter by d keeps d columns of its padding, or, if its video was too long to be padded so much,
    that many more visual tokens than the others: its surplus.

    Attributes
    ----------
    layouts : tuple of VisualLayout
        One per row.
    length : int
        Columns of the batch.
    padding : tuple of int
        How many columns of each row, its first ones, are padding.

    Raises
    ------
    TypeError, ValueError
        If a row's padding does not leave its video whole.
    """

    layouts: tuple[VisualLayout, ...]
    length: int
    padding: tuple[int, ...]

    def __post_init__(self) -> None:
        for row, ((first, last), count) in enumerate(zip(self.key_ranges, self.padding, strict=True)):
            if integer(f"padding[{row}]", count, low=0) > first:
                raise ValueError(f"padding: row {row} has its first visual token at {first}, got {count} of padding")
            if last > self.length:
                raise ValueError(f"length: the last visual token is number {last - 1}, got a sequence of {self.length}")

    @cached_property
    def key_ranges(self) -> tuple[tuple[int, int], ...]:
        """Of each row, the columns that hold all its visual tokens."""
        return tuple(layout.key_range for layout in self.layouts)

    @cached_property
    def texts(self) -> tuple[int, ...]:
        """Text tokens of each row."""
        return tuple(
            self.length - count - len(layout) for layout, count in zip(self.layouts, self.padding, strict=True)
        )

    @cached_property
    def kept_padding(self) -> tuple[int, ...]:
        """Of each row's padding, how much stays."""
        longest = max(self.texts)
        return tuple(min(count, longest - text) for count, text in zip(self.padding, self.texts, strict=True))

    @cached_property
    def surplus(self) -> tuple[int, ...]:
        """How many visual tokens each row keeps above the total of all."""
        longest = max(self.texts)
        return tuple(longest - text - kept for text, kept in zip(self.texts, self.kept_padding, strict=True))

    @cached_property
    def most_asking(self) -> int:
        """Columns from behind the first row's last visual token on, at least one."""
        return max(1, *self.tails)

    @cached_property
    def tails(self) -> tuple[int, ...]:
        """Columns after the last visual token of each row; no stage changes them."""
        return tuple(self.length - last for _, last in self.key_ranges)

    @cached_property
    def num_positions(self) -> int:
        """More than any position."""
        return max(int(layout.position.max()) for layout in self.layouts) + 1

    @cached_property
    def padding_to_go(self) -> tuple[int, ...]:
        """Of each row's padding, how much is dropped with the first stage."""
        return tuple(map(operator.sub, self.padding, self.kept_padding))

    @cached_property
    def first_column(self) -> int:
        """The first column that may be dropped, as the prompts come in."""
        return 0 if any(self.padding_to_go) else min(first for first, _ in self.key_ranges)

    @cached_property
    def first_column_left(self) -> int:
        """The same once a stage has dropped the padding that does not stay."""
        return min(first - gone for (first, _), gone in zip(self.key_ranges, self.padding_to_go, strict=True))

    def length_with(self, total: int) -> int:
        """Columns that are left when the rows keep `total` visual tokens each, beside their surplus."""
        return max(self.texts) + total

    def limits(
        self, segments: Sequence[Tensor], budgets: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[list[tuple[int, int, int, int]]]]:
        """Of every stage, row and segment: its budget; the first of its columns, and the one behind its last; its first place.

        Columns are counted from the first that may be dropped. To a segment belong, beside its own, the columns of text
        between them and behind them, and to the first one those before it, too. Rows are as long as the one with most
        segments, and longer by one where padding is to go: that is a segment of its own, behind all others, with a
        budget of nothing, and its columns are in no range.

        Parameters
        ----------
        segments : sequence of LongTensor [num_frames]
            Of each row, the segment of each frame.
        budgets : sequence
            Of each stage and row, how many tokens every segment keeps.
        """
        width = max(len(row) for row in budgets[0]) + any(self.padding_to_go) if budgets else 0
        rows = [
            self._row_limits(row, segments[row], [kept[row] for kept in budgets], width) for row in range(len(segments))
        ]
        return [list(stage) for stage in zip(*rows, strict=True)]

    def _row_limits(
        self, row: int, frames: Tensor, budgets: list[Sequence[int]], width: int
    ) -> list[list[tuple[int, int, int, int]]]:
        """Of every stage, the limits of one row's segments, as many as `width`."""
        layout, gone, (first, last) = self.layouts[row], self.padding_to_go[row], self.key_ranges[row]
        bounds = segment_bounds(layout, frames)
        before: Sequence[int] = [end - start for start, end in itertools.pairwise(bounds)]
        starts = [*layout.index.index_select(0, torch.tensor(bounds[:-1])).tolist(), last]
        # Of each segment, the columns of text between its first visual token and the next segment's.
        text = [after - start - size for (start, after), size in zip(itertools.pairwise(starts), before, strict=True)]
        text[-1] += self.tails[row] - min(self.tails)
        lead, leaving = first - gone - self.first_column, gone
        stages = []
        for kept in budgets:
            beside = [text[0] + lead, *text[1:]]
            firsts = [*itertools.accumulate(map(operator.add, before, beside), initial=leaving)]
            places = itertools.accumulate(map(operator.add, kept, beside), initial=0)
            limits = list(zip(kept, firsts, firsts[1:], places, strict=False))
            limits += [(0, 0, 0, 0)] * (width - len(limits))
            stages.append(limits)
            before, lead, leaving = kept, first - gone - self.first_column_left, 0
        return stages

    def table(self, segments: Sequence[Tensor]) -> Tensor:
        """Place, segment and position of every column; the last two are −1 where it always stays.

        Parameters
        ----------
        segments : sequence of LongTensor [num_frames]
            Of each row, the segment of each frame. Padding that is to go has a segment after the last of all rows.

        Returns
        -------
        LongTensor [3, B, length]
        """
        padding = max(int(frames[-1]) for frames in segments) + 1
        table = torch.full((3, len(segments), self.length), -1)
        place, segment, position = table.unbind()
        torch.arange(self.length, out=place[0])
        place[1:] = place[0]
        for row, (layout, frames, gone) in enumerate(zip(self.layouts, segments, self.padding_to_go, strict=True)):
            segment[row].scatter_(0, layout.index, frames.index_select(0, layout.frame))
            position[row].scatter_(0, layout.index, layout.position)
            segment[row, :gone] = padding
            position[row, :gone] = 0
        return table

    def asking(self) -> Tensor | None:
        """Which of the columns behind the first row's last visual token come after their own row's.

        Returns
        -------
        BoolTensor [B, max(tails)] or None
            None if all of them do.
        """
        most = max(self.tails)
        if min(self.tails) == most:
            return None
        return torch.arange(most) >= most - torch.tensor(self.tails)[:, None]

"""A batch of prompts that are pruned together: padded on the left to one length, before every stage and after it."""

from __future__ import annotations

import array
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from adatp_kernels.errors import integer
from adatp_kernels.layout import VisualLayout


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
    images : tuple of (int, int), optional
        Of each row, how many of its other columns are images' and stay, and the column behind the last of them.

    Raises
    ------
    TypeError, ValueError
        If a row's padding does not leave its video whole.
    """

    layouts: tuple[VisualLayout, ...]
    length: int
    padding: tuple[int, ...]
    images: tuple[tuple[int, int], ...] = ()

    # Of each row, the columns that hold all its visual tokens.
    key_ranges: tuple[tuple[int, int], ...] = field(init=False, repr=False)
    # Tokens of each row that always stay, and those of them that are text.
    lasting: tuple[int, ...] = field(init=False, repr=False)
    texts: tuple[int, ...] = field(init=False, repr=False)
    # Of each row's padding, how much stays, and how much is dropped with the first stage.
    kept_padding: tuple[int, ...] = field(init=False, repr=False)
    padding_to_go: tuple[int, ...] = field(init=False, repr=False)
    # How many visual tokens each row keeps above the total of all.
    surplus: tuple[int, ...] = field(init=False, repr=False)
    # Columns after the last visual token of each row, no stage changes them; and after the last image, too.
    tails: tuple[int, ...] = field(init=False, repr=False)
    asking_tails: tuple[int, ...] = field(init=False, repr=False)
    # The first column that may be dropped, as the prompts come in; and once the padding that does not stay is gone.
    first_column: int = field(init=False, repr=False)
    first_column_left: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        length, firsts, lasts, lasting = self.length, [], [], []
        for row, (layout, count) in enumerate(zip(self.layouts, self.padding, strict=True)):
            first, last = layout.key_range
            if integer(f"padding[{row}]", count, low=0) > first:
                raise ValueError(f"padding: row {row} has its first visual token at {first}, got {count} of padding")
            if last > length:
                raise ValueError(f"length: the last visual token is number {last - 1}, got a sequence of {length}")
            firsts.append(first)
            lasts.append(last)
            lasting.append(length - count - len(layout))
        room = [max(lasting) - own for own in lasting]
        images = self.images or ((0, 0),) * len(lasts)
        kept = [*map(min, self.padding, room)]
        gone = [*map(operator.sub, self.padding, kept)]
        vars(self).update(
            key_ranges=tuple(zip(firsts, lasts, strict=True)),
            lasting=tuple(lasting),
            texts=tuple([own - count for own, (count, _) in zip(lasting, images, strict=True)]),
            kept_padding=tuple(kept),
            padding_to_go=tuple(gone),
            surplus=tuple(map(operator.sub, room, kept)),
            tails=tuple([length - last for last in lasts]),
            asking_tails=tuple([length - max(last, end) for last, (_, end) in zip(lasts, images, strict=True)]),
            first_column=0 if any(gone) else min(firsts),
            first_column_left=min(map(operator.sub, firsts, gone)),
        )

    @cached_property
    def most_asking(self) -> int:
        """Columns from behind the last visual token or image on, where it comes first of all rows; at least one."""
        return max(1, *self.asking_tails)

    @cached_property
    def num_positions(self) -> int:
        """More than any position."""
        return max([int(layout.position.max()) for layout in self.layouts]) + 1

    def length_with(self, total: int) -> int:
        """Columns that are left when the rows keep `total` visual tokens each, beside their surplus."""
        return max(self.lasting) + total

    def limits(self, bounds: Sequence[Sequence[int]], budgets: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """Of every stage, row and segment: its budget; the first of its columns, and the one behind its last; its first place.

        Columns are counted from the first that may be dropped. To a segment belong, beside its own, the columns of text
        between them and behind them, and to the first one those before it, too. Rows are as long as the one with most
        segments, and longer by one where padding is to go: that is a segment of its own, behind all others, with a
        budget of nothing, and its columns are in no range.

        Parameters
        ----------
        bounds : sequence
            Of each row, its `segment_bounds`.
        budgets : sequence
            Of each row and stage, how many tokens every segment keeps.

        Returns
        -------
        LongTensor [stages, B, segments, 4]
        """
        width = max(map(len, bounds)) - 1 + any(self.padding_to_go)
        rows = []
        for row, (of_row, kept) in enumerate(zip(bounds, budgets, strict=True)):
            limits = self._row_limits(row, of_row, kept)
            missing = width - limits.shape[1]
            rows.append(F.pad(limits, (0, 0, 0, missing)) if missing else limits)
        return torch.stack(rows, 1)

    def _row_limits(self, row: int, bounds: Sequence[int], budgets: Sequence[Sequence[int]]) -> Tensor:
        """Of every stage, the limits of one row's segments."""
        layout, gone, (first, last) = self.layouts[row], self.padding_to_go[row], self.key_ranges[row]
        sizes = [*map(operator.sub, bounds[1:], bounds)]
        # Of each segment, the columns of text between its first visual token and the next segment's.
        text = [0] * len(sizes)
        if last - first > bounds[-1]:
            starts = [*layout.index.index_select(0, torch.tensor(bounds[:-1], device="cpu")).tolist(), last]
            text = [after - start - size for start, after, size in zip(starts, starts[1:], sizes, strict=False)]
        text[0] += first - gone - self.first_column_left
        text[-1] += self.tails[row] - min(self.tails)
        # An array takes a tenth of the time that torch.tensor takes for nested lists. Its last row is the text.
        numbers = array.array("q", [*itertools.chain(sizes, *budgets, text)])
        table = torch.frombuffer(numbers, dtype=torch.int64).view(-1, len(sizes))
        kept = table[:-1]
        columns = kept + table[-1]
        behind = columns.cumsum(1)
        ahead = behind - columns  # of a stage the first places, and of the next one the first columns
        limits = torch.stack((kept[1:], ahead[:-1], behind[:-1], ahead[1:]), -1)
        # Only the first stage has padding that goes before it, and its columns are counted from 0 then.
        if any(self.padding_to_go):
            limits[0, :, 1:3] += gone + self.first_column_left
            limits[0, 0, 1] = gone
            limits[0, 1:, 3] += self.first_column_left
        return limits

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
        table = torch.full((3, len(segments), self.length), -1, device="cpu")
        table[0] = torch.arange(self.length, device="cpu")
        for row, (layout, frames) in enumerate(zip(self.layouts, segments, strict=True)):
            table[1, row].scatter_(0, layout.index, frames.index_select(0, layout.frame))
            table[2, row].scatter_(0, layout.index, layout.position)
        if any(self.padding_to_go):
            padding = max([int(frames[-1]) for frames in segments]) + 1
            for row, gone in enumerate(self.padding_to_go):
                table[1, row, :gone] = padding
                table[2, row, :gone] = 0
        return table

    def asking(self) -> Tensor | None:
        """Which of the last `most_asking` columns come after their row's last visual token and image.

        Returns
        -------
        BoolTensor [B, max(asking_tails)] or None
            None if all of them do.
        """
        most = max(self.asking_tails)
        if min(self.asking_tails) == most:
            return None
        return torch.arange(most, device="cpu") >= most - torch.tensor(self.asking_tails, device="cpu")[:, None]

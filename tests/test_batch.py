"""Batch: how prompts of different videos and texts line up before and after a stage."""

import pytest
import torch

from adatp_kernels import VisualLayout
from adatp_kernels.batch import Batch
from adatp_kernels.segments import segment_bounds

# Rows of 30 columns: (padding, text before, video, text after).
EVEN = Batch((VisualLayout.grid(2, 6, 8), VisualLayout.grid(2, 6, 3)), 30, (0, 1))  # 8+12+10, 1|2+12+15
MIXED = Batch(
    (VisualLayout.grid(2, 4, 18), VisualLayout.grid(4, 6, 4), VisualLayout.grid(2, 6, 8)), 30, (16, 0, 5)
)  # 16|2+8+4, 4+24+2, 5|3+12+10


def listed(batch, frames, budgets):
    """The limits of every stage and row, segment by segment."""
    bounds = [segment_bounds(layout, row) for layout, row in zip(batch.layouts, frames, strict=True)]
    return [[[*map(tuple, row)] for row in stage] for stage in batch.limits(bounds, budgets).tolist()]


def test_rows_with_videos_of_one_length_keep_their_padding():
    assert EVEN.texts == (18, 17)
    assert EVEN.kept_padding == EVEN.padding == (0, 1) and EVEN.surplus == (0, 0)
    assert (EVEN.first_column, EVEN.first_column_left, EVEN.tails) == (3, 3, (10, 15))
    assert EVEN.length_with(12) == 30 and EVEN.length_with(5) == 23
    place, segment, position = EVEN.table([torch.tensor([0, 1]), torch.tensor([0, 0])])
    assert segment[0].tolist() == [-1] * 8 + [0] * 6 + [1] * 6 + [-1] * 10
    assert segment[1].tolist() == [-1] * 3 + [0] * 12 + [-1] * 15
    assert position[1, 3:15].tolist() == [*range(6), *range(6)]
    assert place.tolist() == [[*range(30)]] * 2
    limits = listed(EVEN, [[0, 1], [0, 0]], [[(2, 1), (1, 1)], [(3,), (2,)]])
    # The budget, the columns and the first place of each segment; text before the video is the first one's.
    assert limits[0] == [[(2, 0, 11, 0), (1, 11, 17, 7)], [(3, 0, 17, 0), (0, 0, 0, 0)]]
    assert limits[1] == [[(1, 0, 7, 0), (1, 7, 8, 6)], [(2, 0, 8, 0), (0, 0, 0, 0)]]
    assert EVEN.num_positions == 6


def test_padding_beside_short_videos_goes_but_for_what_the_longest_text_needs():
    assert MIXED.texts == (6, 6, 13)
    assert MIXED.kept_padding == (7, 0, 0)
    assert MIXED.surplus == (0, 7, 0)
    for total in (8, 3, 1):
        lengths = {
            text + kept + extra + total
            for text, kept, extra in zip(MIXED.texts, MIXED.kept_padding, MIXED.surplus, strict=True)
        }
        assert lengths == {MIXED.length_with(total)} == {13 + total}
    assert MIXED.first_column == 0
    assert MIXED.first_column_left == min(18 - 9, 4, 8 - 5)
    _, segment, position = MIXED.table([torch.tensor([0, 1]), torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0])])
    assert segment[0].tolist() == [3] * 9 + [-1] * 9 + [0] * 4 + [1] * 4 + [-1] * 4
    assert segment[1].tolist() == [-1] * 4 + [0] * 6 + [1] * 12 + [2] * 6 + [-1] * 2
    assert segment[2].tolist() == [3] * 5 + [-1] * 3 + [0] * 12 + [-1] * 10
    assert position[0, :9].tolist() == [0] * 9
    budgets = [[(2, 1), (1, 1)], [(4, 2, 4), (3, 2, 4)], [(3,), (2,)]]
    limits = listed(MIXED, [[0, 1], [0, 1, 1, 2], [0, 0]], budgets)
    # The padding's segment keeps nothing, and its columns, which come first, are in no range; then it is gone.
    assert limits[0][0] == [(2, 9, 22, 0), (1, 22, 28, 11), (0, 0, 0, 0), (0, 0, 0, 0)]
    assert limits[0][1] == [(4, 0, 10, 0), (2, 10, 22, 8), (4, 22, 28, 10), (0, 0, 0, 0)]
    assert limits[0][2] == [(3, 5, 28, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)]
    assert limits[1][0] == [(1, 0, 8, 0), (1, 8, 11, 7), (0, 0, 0, 0), (0, 0, 0, 0)]
    assert limits[1][1] == [(3, 0, 5, 0), (2, 5, 7, 4), (4, 7, 11, 6), (0, 0, 0, 0)]
    assert limits[1][2] == [(2, 0, 11, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)]


def test_which_rows_ask():
    assert Batch((VisualLayout.grid(1, 2, 0),) * 2, 5, (0, 0)).asking() is None
    assert EVEN.asking().tolist() == [[False] * 5 + [True] * 10, [True] * 15]


@pytest.mark.parametrize(
    ("length", "padding", "error", "message"),
    [
        (30, (0, 4), ValueError, "padding: row 1 has its first visual token at 3, got 4 of padding"),
        (30, (-1, 0), ValueError, r"padding\[0\]: expected an integer of at least 0"),
        (30, (0, 0.5), TypeError, r"padding\[1\]: expected an integer"),
        (17, (0, 0), ValueError, "length: the last visual token is number 19, got a sequence of 17"),
    ],
)
def test_batches_that_cannot_be(length, padding, error, message):
    with pytest.raises(error, match=message):
        Batch(EVEN.layouts, length, padding)

import pytest
import torch
from brute_force import names

from adatp_kernels import VisualLayout


def test_grid():
    layout = VisualLayout.grid(3, 2, start=5)
    assert layout.index.tolist() == [5, 6, 7, 8, 9, 10]
    assert layout.frame.tolist() == [0, 0, 1, 1, 2, 2]
    assert layout.position.tolist() == [0, 1, 0, 1, 0, 1]
    assert (len(layout), layout.num_frames, layout.key_range) == (6, 3, (5, 11))


def test_lists_and_other_integers_become_int64():
    layout = VisualLayout([1, 2], torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 0], dtype=torch.uint8))
    assert {layout.index.dtype, layout.frame.dtype, layout.position.dtype} == {torch.int64}


def test_table_marks_text_between_frames():
    # A timestamp stands before each frame: columns 2 and 5.
    layout = VisualLayout([3, 4, 6, 7], [0, 0, 1, 1], [0, 1, 0, 1])
    segments, positions = layout.table(torch.tensor([0, 1]), 10)
    assert segments.tolist() == [-1, -1, -1, 0, 0, -1, 1, 1, -1, -1]
    assert positions.tolist() == [-1, -1, -1, 0, 1, -1, 0, 1, -1, -1]
    assert layout.key_range == (3, 8)


def test_table_may_end_with_the_last_visual_token():
    segments, _ = VisualLayout.grid(2, 2, 0).table(torch.tensor([0, 0]), 4)
    assert segments.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"index": [1.0, 2.0, 3.0]}, "index"),
        ({"index": [[1, 2, 3]]}, "index"),
        ({"index": [-1, 2, 3]}, "index"),
        ({"index": [1, 2, 2]}, "index"),
        ({"index": [3, 2, 1]}, "index"),
        ({"index": [1, 2]}, "index"),
        ({"index": "abc"}, "index"),
        ({"index": [[1], [2, 3]]}, "index"),
        ({"index": None}, "index"),
        ({"index": [], "frame": [], "position": []}, "index"),
        ({"frame": [1, 1, 2]}, "frame"),
        ({"frame": [0, 2, 2]}, "frame"),
        ({"frame": [0, 1, 0]}, "frame"),
        ({"frame": [0, 1]}, "frame"),
        ({"frame": [True, False, True]}, "frame"),
        ({"frame": "abc"}, "frame"),
        ({"position": [0, -1, 2]}, "position"),
        ({"position": [0, 1, 2, 3]}, "position"),
        ({"position": torch.zeros(3, dtype=torch.complex64)}, "position"),
        ({"position": object()}, "position"),
    ],
)
def test_mistakes_name_the_field(changes, argument):
    good = {"index": [1, 2, 3], "frame": [0, 0, 1], "position": [0, 1, 0]}
    VisualLayout(**good)
    with names(argument):
        VisualLayout(**(good | changes))


def test_an_empty_layout_says_that_it_is_empty():
    with pytest.raises(ValueError, match="at least one visual token"):
        VisualLayout([], [], [])


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((0, 4, 0), "num_frames"),
        ((1.5, 4, 0), "num_frames"),
        ((2, 0, 0), "positions_per_frame"),
        ((2, "4", 0), "positions_per_frame"),
        ((2, 4, -1), "start"),
        ((2, 4, None), "start"),
    ],
)
def test_grid_mistakes(arguments, argument):
    with names(argument):
        VisualLayout.grid(*arguments)


@pytest.mark.parametrize(
    ("segments", "length", "argument"),
    [
        (torch.tensor([0, 0]), 5, "length"),
        (torch.tensor([0, 0]), 8.5, "length"),
        (torch.tensor([0, 0]), None, "length"),
        (torch.tensor([0]), 9, "segments"),
        (torch.tensor([0, 0, 1]), 9, "segments"),
        (torch.tensor([0.0, 1.0]), 9, "segments"),
        (None, 9, "segments"),
    ],
)
def test_table_mistakes(segments, length, argument):
    with names(argument):
        VisualLayout.grid(2, 2, 2).table(segments, length)

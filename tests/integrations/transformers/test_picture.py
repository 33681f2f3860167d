"""A report's picture shows what was kept where it is, in the frames' own shapes, and tells it from what is merely dark."""

import sys

import numpy as np
import pytest
import torch
from family_models import BUILDERS, build, prompt
from masked_reference import generate
from PIL import Image

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import Report
from adatp_kernels.integrations.transformers.picture import BORDERS, DOTS, PRUNED, STRIPES, WIDTH, _clock

HEAD = 70  # rows of pixels that hold the question, or none, and the legend: no frame begins above


def a_report(grids, *, shares=(0.6, 0.4, 0.2), present=None, segments=None, salient=(), pictures_per_frame=1, seed=0):
    """Of frames of these grids, one column of text before them; of each stage so large a share is left, drawn at random."""
    cells = [rows * columns for rows, columns in grids]
    frame = torch.arange(len(grids)).repeat_interleave(torch.tensor(cells))
    position = torch.cat([torch.arange(count) for count in cells])
    if present is not None:
        frame, position = frame[present], position[present]
    layout = adatp.VisualLayout(torch.arange(len(frame)) + 1, frame, position)
    order = torch.randperm(len(frame), generator=torch.Generator().manual_seed(seed))
    survivors = tuple(
        (
            3 * stage,
            torch.cat([torch.tensor([0]), layout.index[order[: max(1, int(share * len(frame)))].sort().values]]),
        )
        for stage, share in enumerate(shares)
    )
    return Report(
        plan=None, layout=layout, segments=tuple(range(len(grids))) if segments is None else segments, salient=salient,
        text_tokens=9, asking_start=1 + len(frame), planned_tokens=(), actual_tokens=(), planned_flops_ratio=1.0,
        actual_flops_ratio=1.0, survivors=survivors, seconds={}, backends={}, grids=tuple(grids),
        pictures_per_frame=pictures_per_frame,
    )  # fmt: skip


def drawn(report, frames, folder, **options):
    report.draw(frames, folder / "p.png", **options)
    with Image.open(folder / "p.png") as image:
        return np.asarray(image.convert("RGB")).astype(int)


def is_colour(image, colour):
    return (image == np.array(colour)).all(-1)


def runs(marks):
    """Where True begins and ends, run by run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marks.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2], strict=True))


def insides(image, colour):
    """Of each panel, in order, the pixels within the one frame whose border has this colour."""
    border = is_colour(image, colour)
    border[:HEAD] = False
    found = []
    lines = runs(border.sum(1) > 20)  # the upper and the lower edge of a frame are three lines each
    sides = [line for line in lines if line[1] - line[0] == 3]
    for (_, top), (bottom, _) in zip(sides[::2], sides[1::2], strict=True):
        left, right = [part for part in runs(border[(top + bottom) // 2]) if part[1] - part[0] == 3]
        found.append(image[top:bottom, left[1] : right[0]])
    return found


def in_shape(inside, size):
    """Whether a frame has the shape of its picture, to a pixel."""
    (height, width), (rows, columns) = inside.shape[:2], size
    return min(abs(height - width * rows / columns), abs(width - height * columns / rows)) <= 1


def cells_shown(inside, grid, colour):
    """Which cells of a frame show `colour` all over, and that no other shows it anywhere."""
    rows, columns = grid
    height, width = inside.shape[:2]
    shown = np.zeros(grid, bool)
    for row in range(rows):
        for column in range(columns):
            top, left = -(-row * height // rows), -(-column * width // columns)
            part = inside[top : -(-(row + 1) * height // rows), left : -(-(column + 1) * width // columns)]
            lit = is_colour(part, colour)
            assert lit.all() or not lit.any()
            shown[row, column] = lit.all()
    return shown


@pytest.mark.parametrize(
    ("grids", "size"),
    [
        ([(3, 5)] * 2, (90, 160)),
        ([(7, 4)] * 3, (320, 180)),
        ([(6, 6)] * 4, (50, 50)),
        ([(2, 9), (4, 3), (1, 1)], (333, 517)),
    ],
)
def test_what_was_kept_is_seen_where_it_is_and_nothing_else(tmp_path, grids, size):
    report = a_report(grids)
    colours = [(200, 20 * frame, 90) for frame in range(len(grids))]
    image = drawn(report, np.stack([np.full((*size, 3), colour, np.uint8) for colour in colours]), tmp_path)
    stages = report.cells()
    for frame, (grid, colour) in enumerate(zip(grids, colours, strict=True)):
        panels = insides(image, BORDERS[frame])
        assert len(panels) == len(stages) == 3
        for inside, (_, cells) in zip(panels, stages, strict=True):
            assert in_shape(inside, size)
            expected = np.zeros(grid, bool)
            for _, row, column in cells[cells[:, 0] == frame].tolist():
                expected[row, column] = True
            assert (cells_shown(inside, grid, colour) == expected).all()


def test_one_frame_has_its_stages_beside_each_other(tmp_path):
    image = drawn(a_report([(4, 6)]), [np.full((90, 160, 3), 200, np.uint8)], tmp_path)
    assert image.shape[1] > 2 * image.shape[0]
    line = is_colour(image[-60], BORDERS[0])
    assert sum(end - start == 3 for start, end in runs(line)) == 6


@pytest.mark.parametrize("shade", [0, 20, 255, PRUNED])
def test_dark_things_do_not_look_pruned(tmp_path, shade):
    report = a_report([(4, 4)] * 2)
    image = drawn(report, np.broadcast_to(np.array(shade, np.uint8), (2, 96, 96, 3)), tmp_path)
    kept = np.array([0, 0, 0]) + shade
    for frame in range(2):
        for inside, (_, cells) in zip(insides(image, BORDERS[frame]), report.cells(), strict=True):
            share = int((cells[:, 0] == frame).sum()) / 16
            stripes = is_colour(inside, STRIPES)
            assert stripes.mean() == pytest.approx((1 - share) / 6, abs=0.01)
            if shade != PRUNED:  # between the stripes, too
                assert is_colour(inside, kept).mean() == pytest.approx(share, abs=0.01)
    assert is_colour(image[:HEAD], STRIPES).sum() > 50  # in the legend


def test_what_was_left_out_before_is_told_from_what_was_pruned(tmp_path):
    present = torch.ones(32, dtype=torch.bool)
    present[20:28] = False
    report = a_report([(4, 4)] * 2, present=present)
    frames = np.full((2, 96, 96, 3), 210, np.uint8)
    image = drawn(report, frames, tmp_path)
    for frame, share in ((0, 0), (1, 0.5)):
        for inside in insides(image, BORDERS[frame]):
            assert is_colour(inside, DOTS).mean() == pytest.approx(share / 16, abs=0.003)
    assert is_colour(image[:HEAD], DOTS).any()
    assert not is_colour(drawn(a_report([(4, 4)] * 2), frames, tmp_path), DOTS).any()


def test_frames_of_different_sizes(tmp_path):
    sizes = [(90, 160), (160, 90), (100, 100), (40, 160)]
    frames = [np.full((*size, 3), 210, np.uint8) for size in sizes]
    mixed = [
        frames[0],
        torch.from_numpy(frames[1]),
        Image.fromarray(frames[2]),
        Image.fromarray(frames[3][..., 0], "L"),
    ]
    image = drawn(a_report([(3, 3)] * 4), mixed, tmp_path)
    for frame, (height, width) in enumerate(sizes):
        for inside in insides(image, BORDERS[frame]):
            assert in_shape(inside, (height, width))


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (96, 96)])
def test_a_sensible_size_for_few_frames_and_many(tmp_path, size):
    for count, height in ((1, 700), (8, 1900), (32, 2200), (128, 3600)):
        frames = np.broadcast_to(np.uint8(90), (count, *size, 3))
        image = drawn(a_report([(4, 4)] * count), frames, tmp_path, question="what?", seconds=range(count))
        assert image.shape[1] <= WIDTH and image.shape[0] <= height, (count, image.shape)
        widest = max(end - start for line in image[HEAD:] for start, end in runs(is_colour(line, BORDERS[0])))
        assert widest >= (150 if count <= 8 else 60)  # of the upper edge of a frame


def test_nothing_pruned(tmp_path):
    image = drawn(a_report([(3, 5)] * 2, shares=()), np.full((2, 90, 160, 3), 210, np.uint8), tmp_path)
    for frame in range(2):
        (inside,) = insides(image, BORDERS[frame])
        assert is_colour(inside, (210, 210, 210)).all()


def test_of_many_stages_the_first_the_middle_and_the_last(tmp_path):
    report = a_report([(4, 4)], shares=(0.9, 0.8, 0.7, 0.4, 0.2))
    image = drawn(report, [np.full((160, 90, 3), 210, np.uint8)], tmp_path)
    line = runs(is_colour(image[-60], BORDERS[0]))
    panels = [image[:, start:end] for (_, start), (end, _) in zip(line[::2], line[1::2], strict=True)]
    lit = [is_colour(panel, (210, 210, 210)).sum() for panel in panels]
    kept = [len(report.cells()[stage][1]) for stage in (0, 2, 4)]
    assert np.divide(lit, lit[0]) == pytest.approx(np.divide(kept, kept[0]), abs=0.02)


@pytest.mark.parametrize(
    "question",
    ["", "what?", "Was läuft über die Straße?", "日本語の質問", "ما هذا؟", "что это", "🎬👨‍👩‍👧", "bytes \udcff\udc80", "a\x00b\nc\td\x7f",
     "word" * 1000, "many words " * 1000, "שלום\u202e\ufeff", "\ud800"],
)  # fmt: skip
def test_any_question(tmp_path, question):
    report, frames = a_report([(2, 2)] * 2), np.full((2, 96, 96, 3), 210, np.uint8)
    image = drawn(report, frames, tmp_path, question=question)
    without = drawn(report, frames, tmp_path)
    assert 0 <= image.shape[0] - without.shape[0] <= 120 and image.shape[1] == without.shape[1]
    report.draw(frames, tmp_path / "q.png", question=question)
    with Image.open(tmp_path / "q.png") as saved:
        assert len(saved.text["Question"]) <= len(question)
        letters = [letter for letter in question if letter.isprintable() and letter != " "]
        assert [letter for letter in saved.text["Question"] if letter != " "] == letters


def test_times(tmp_path):
    assert [_clock(seconds) for seconds in (0, 4.2, 59.94, 59.96, 61.05, 3600, 7325.5)] == [
        "0:00.0", "0:04.2", "0:59.9", "1:00.0", "1:01.0", "60:00.0", "122:05.5",
    ]  # fmt: skip
    report, frames = a_report([(2, 2)] * 2), np.full((2, 96, 96, 3), 210, np.uint8)
    first, second, without = (drawn(report, frames, tmp_path, seconds=given) for given in ([0, 1.5], [0.0, 2.5], None))
    assert (first != second).any() and (first != without).any()


def test_salient_segments_are_marked(tmp_path):
    report, frames = (
        [a_report([(2, 2)] * 2, salient=salient) for salient in ((), (1,))],
        np.zeros((2, 96, 96, 3), np.uint8),
    )
    without, marked = (drawn(one, frames, tmp_path)[HEAD:] for one in report)
    changed = without != marked
    assert changed.any()
    assert (
        is_colour(marked[changed.any(-1).any(1)], BORDERS[1]).sum()
        > is_colour(without[changed.any(-1).any(1)], BORDERS[1]).sum()
    )
    assert is_colour(marked, BORDERS[0]).sum() == is_colour(without, BORDERS[0]).sum()


def test_the_first_of_the_pictures_that_become_one(tmp_path):
    report = a_report([(2, 2)] * 3, shares=(), pictures_per_frame=2)
    every = np.stack([np.full((96, 96, 3), 40 * number + 10, np.uint8) for number in range(6)])
    for frames, seconds in ((every, range(6)), (every[:5], range(5)), (every[::2], [0, 2, 4])):
        image = drawn(report, frames, tmp_path, seconds=seconds)
        assert (image == drawn(report, every[::2], tmp_path, seconds=[0, 2, 4])).all()
        for frame in range(3):
            assert (insides(image, BORDERS[frame])[0] == 80 * frame + 10).all()


FRAMES = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "path", "options", "error", "message"),
    [
        (None, "p.jpg", {}, ValueError, r"path: expected a name that ends with .png, got .*p\.jpg"),
        (None, "p", {}, ValueError, r"path: expected a name that ends with .png, got .*p"),
        (None, "p.png", {}, TypeError, r"frames: expected an array \[n, H, W, 3\] or a sequence of pictures, got NoneType"),
        ("abc", "p.png", {}, TypeError, "frames: .* got str"),
        (FRAMES[:2], "p.png", {}, ValueError, "frames: expected the 3 that the report is of, got 2"),
        (np.concatenate([FRAMES] * 2), "p.png", {}, ValueError, "frames: expected the 3 that the report is of, got 6"),
        (FRAMES[0], "p.png", {}, ValueError, r"frames: expected shape \[n, H, W, 3\], got \[8, 8, 3\]"),
        (FRAMES.astype(float), "p.png", {}, TypeError, "frames: expected uint8 from 0 to 255, got float64 as number 0"),
        (torch.zeros(3, 3, 8, 8).byte(), "p.png", {}, ValueError, r"frames: expected .* shape \[H, W, 3\], got \[3, 8, 8\] as number 0"),
        ([FRAMES[0], FRAMES[1], FRAMES[2, ..., 0]], "p.png", {}, ValueError, r"got \[8, 8\] as number 2"),
        ([FRAMES[0], FRAMES[1], [1, 2]], "p.png", {}, TypeError, "frames: expected arrays, tensors or PIL images, got list as number 2"),
        (FRAMES, "p.png", {"seconds": [0.0, 1.0]}, ValueError, "seconds: expected one for each of the 3 frames, got 2"),
        (FRAMES, "p.png", {"seconds": [0.0, 1.0, "2"]}, TypeError, r"seconds\[2\]: expected a number, got '2'"),
        (FRAMES, "p.png", {"seconds": [0.0, 1.0, float("nan")]}, ValueError, r"seconds\[2\]: expected a number in"),
    ],
)  # fmt: skip
def test_refused(tmp_path, frames, path, options, error, message):
    with pytest.raises(error, match=message):
        a_report([(2, 2)] * 3).draw(frames, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_refused_numbers_of_pictures_where_several_become_one(tmp_path):
    report = a_report([(2, 2)] * 3, pictures_per_frame=2)
    for count in (2, 4, 7):
        message = f"frames: expected the 3 that the report is of, or 5 to 6, as 2 become one, got {count}"
        with pytest.raises(ValueError, match=message):
            report.draw(np.zeros((count, 8, 8, 3), np.uint8), tmp_path / "p.png")


def test_a_frame_without_a_grid_is_refused(tmp_path):
    report = a_report([(2, 2)] * 3)
    object.__setattr__(report, "grids", ((2, 2), None, (2, 2)))
    with pytest.raises(ValueError, match="grids: .* of frame 1 are not known, which has 4 tokens"):
        report.draw(FRAMES, tmp_path / "p.png")


@pytest.mark.parametrize("missing", ["PIL", "numpy"])
def test_what_is_missing_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "adatp_kernels.integrations.transformers.picture", raising=False)
    monkeypatch.delattr("adatp_kernels.integrations.transformers.picture", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"draw: .* {missing} is missing: pip install 'adatp-kernels\[demo\]'"
    ):
        a_report([(2, 2)] * 3).draw(FRAMES, tmp_path / "p.png")


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family(tmp_path, family):
    model = build(family)
    with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))) as run:
        generate(model, prompt(family), max_new_tokens=1)
    report = run.report()
    frames = np.full((6 * report.pictures_per_frame, 40, 60, 3), 210, np.uint8)
    image = drawn(report, frames, tmp_path, question="what?")
    assert is_colour(image, (210, 210, 210)).any() and is_colour(image, STRIPES).any()

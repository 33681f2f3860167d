"""Frames are upright, in the colours that a player shows, and as large as asked for."""

import numpy as np
import pytest
from numbered_videos import PATCHES, numbers, patches, turn, write

from adatp_kernels.video import read_video
from adatp_kernels.video.picture import fit


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", 4)


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (-1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, 1, -1, 0),
        (0, -1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_every_turn_and_mirroring_is_undone(tmp_path, clip, matrix):
    stored = read_video(clip, num_frames=4).frames
    video = read_video(turn(clip, tmp_path / "turned.mp4", *matrix), num_frames=4)
    a, b, c, d = matrix
    y, x = np.mgrid[: stored.shape[1], : stored.shape[2]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    upright = np.zeros((4, to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    upright[:, to_y, to_x] = stored
    assert np.array_equal(video.frames, upright)
    assert video.size == (upright.shape[2], upright.shape[1])


def test_a_phone_held_upright(tmp_path, clip):
    """A quarter turn clockwise, as the matrix of a portrait recording has it: the left edge comes to the top."""
    video = read_video(turn(clip, tmp_path / "portrait.mp4", 0, 1, -1, 0), num_frames=1, max_pixels=64 * 48 // 4)
    assert video.frames.shape == (1, 32, 24, 3) and video.size == (48, 64)
    bars, patch = video.frames[0, :, 20], video.frames[0, :, 3]  # the stored top is on the right
    assert bars[0].mean() > 127 and (bars[9:].mean(-1) < 127).all()  # number 1: the lowest bit
    assert np.abs(patch[[4, 12, 20, 28]].astype(int) - PATCHES).max() < 12


@pytest.mark.parametrize("size", [(1280, 48), (64, 578), (64, 48)])
@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("tagged", [True, False])
def test_the_colour_matrix_is_the_tagged_one_or_that_of_the_size(tmp_path, size, matrix, tagged):
    path = write(tmp_path / "clip.mp4", 1, size=size, colour=(matrix, 1), tagged=tagged)
    wrong = np.abs(patches(read_video(path, num_frames=1).frames[0]) - PATCHES).max()
    guess = 6 if size == (64, 48) else 1
    assert wrong <= 3 if tagged or matrix == guess else wrong > 12


@pytest.mark.parametrize("matrix", [1, 6])
def test_full_range_is_respected(tmp_path, matrix):
    path = write(tmp_path / "clip.mp4", 1, colour=(matrix, 2), tagged=True)
    assert np.abs(patches(read_video(path, num_frames=1).frames[0]) - PATCHES).max() <= 3


def test_tags_of_rgb_and_odd_sizes_do_no_harm(tmp_path):
    for name, codec, pix_fmt, size in (
        ("a.mkv", "ffv1", "bgr0", (1281, 49)),
        ("b.mkv", "libx264", "yuv444p", (1281, 579)),
        ("c.webm", "libvpx-vp9", "yuv420p", (67, 51)),
        ("d.mkv", "ffv1", "gray", (64, 48)),
    ):
        colour = (1, 1) if size[0] > 1280 else (6, 1)
        options = {"crf": "10", "b": "1M"} if codec != "ffv1" else {}
        video = read_video(
            write(tmp_path / name, 2, codec=codec, pix_fmt=pix_fmt, size=size, colour=colour, options=options),
            num_frames=2,
        )
        assert video.size == size and numbers(video.frames) == [0, 1]
        if pix_fmt != "gray":
            assert np.abs(patches(video.frames[0]) - PATCHES).max() <= 8
        if pix_fmt == "bgr0":
            assert np.abs(patches(video.frames[0]) - PATCHES).max() == 0


@pytest.mark.parametrize(("width", "height"), [(64, 48), (1920, 1080), (1080, 1920), (5000, 3), (1, 4000)])
@pytest.mark.parametrize("area", [1, 7, 100, 3071, 3072, 602112, 10**9])
def test_the_largest_size_within_the_area_keeps_the_aspect(width, height, area):
    w, h = fit(width, height, area)
    assert 1 <= w <= width and 1 <= h <= height and w * h <= area
    if width * height <= area:
        assert (w, h) == (width, height)
    elif min(w, h) > 1:
        assert abs(w / h - width / height) <= width / height * (1 / w + 1 / h)
        assert (w + 1) * (h + 1) > area
    assert fit(width, height, None) == (width, height)


def test_smaller_pictures_do_not_alias(tmp_path):
    """Stripes of a pixel become grey, at the mean of what they were."""
    import av

    with av.open(str(tmp_path / "stripes.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "bgr0"
        stripes = np.zeros((480, 640, 3), np.uint8)
        stripes[:, ::2] = 255
        frame = av.VideoFrame.from_ndarray(stripes)
        frame.pts = 0
        for each in (frame, None):
            container.mux(stream.encode(each))
    small = read_video(tmp_path / "stripes.mkv", num_frames=1, max_pixels=80 * 60)
    assert small.frames.shape == (1, 60, 80, 3) and small.size == (640, 480)
    assert np.abs(small.frames[:, 5:-5, 5:-5].astype(int) - 127).max() <= 12
    assert read_video(tmp_path / "stripes.mkv", num_frames=1, max_pixels=10**7).frames.shape == (1, 480, 640, 3)

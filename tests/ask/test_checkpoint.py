"""How large frames are read for a checkpoint's processor."""

import numpy as np
import pytest

from adatp_kernels.ask.checkpoint import PIXELS, Checkpoint


@pytest.mark.parametrize(
    ("size", "patch", "frames", "expected"),
    [
        ({"height": 384, "width": 384, "longest_edge": None}, 14, 32, PIXELS),
        ({"longest_edge": 1456}, None, 32, PIXELS),  # an edge
        ({"shortest_edge": 4096, "longest_edge": 32 * 2 * PIXELS}, 16, 32, 2 * PIXELS),  # the area of all frames
        ({"shortest_edge": 4096, "longest_edge": 602_112}, 14, 1, PIXELS),
    ],
)
def test_pixels_that_are_worth_keeping(size, patch, frames, expected):
    class Processor:
        class video_processor:
            pass

    Processor.video_processor.size, Processor.video_processor.patch_size = size, patch
    one = Checkpoint.__new__(Checkpoint)
    one.processor = Processor
    assert one.max_pixels(frames) == expected


@pytest.mark.parametrize(
    ("size", "crop", "frame", "left"),
    [
        ({"shortest_edge": 28, "height": None, "width": None}, (28, 28), (40, 60), (slice(0, 40), slice(10, 50))),
        ({"shortest_edge": 32, "height": None, "width": None}, (28, 28), (64, 96), (slice(4, 60), slice(20, 76))),
        ({"shortest_edge": None, "height": 20, "width": 30}, (10, 30), (40, 60), (slice(10, 30), slice(0, 60))),
        ({"shortest_edge": 28, "height": None, "width": None}, None, (40, 60), (slice(0, 40), slice(0, 60))),
    ],
)
def test_what_a_processor_leaves_of_a_frame(size, crop, frame, left):
    class Processor:
        class video_processor:
            do_center_crop = crop is not None

    Processor.video_processor.size = size
    if crop is not None:
        Processor.video_processor.crop_size = {"height": crop[0], "width": crop[1]}
    one = Checkpoint.__new__(Checkpoint)
    one.processor = Processor
    frames = np.random.default_rng(0).integers(0, 255, (2, *frame, 3), np.uint8)
    assert np.array_equal(one.seen(frames), frames[:, left[0], left[1]])

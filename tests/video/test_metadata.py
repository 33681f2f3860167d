"""What a processor of transformers is told of a video: the times of its frames, wherever in time they lie."""

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from adatp_kernels.video import Video


def video(seconds, count=None, duration=None):
    count = len(seconds) if count is None else count
    frames = np.zeros((count, 4, 6, 3), np.uint8)
    return Video(
        frames=frames, seconds=seconds, duration=duration, num_source_frames=100, damaged=0, size=(6, 4), evenly="time"
    )


def told(one):
    return VideoMetadata(**one.metadata())


def test_times_and_rate_are_those_of_the_frames():
    one = told(video((0.0, 0.517, 1.034, 1.551), duration=1.6))
    assert one.timestamps == [0.0, 0.517, 1.034, 1.551] and one.duration == 1.6
    assert one.sampled_fps == pytest.approx(1 / 0.517, rel=1e-3)  # of which Qwen2.5-VL makes its positions in time
    assert (one.width, one.height) == (6, 4)


def test_uneven_times_are_kept():
    one = told(video((0.0, 0.1, 7.0)))
    assert one.timestamps == [0.0, 0.1, 7.0] and one.sampled_fps == pytest.approx(2 / 7, rel=1e-3)


def test_a_single_frame():
    assert told(video((3.25,), duration=6.5)).timestamps == [3.25]
    assert told(video((3.25,))).total_num_frames > 0


def test_without_times_the_processor_assumes_some():
    one = told(video(None, count=3))
    assert one.fps is None and one.frames_indices == [0, 1, 2] and one.total_num_frames == 3

"""What packets say of frames, and when their time stamps are not believed."""

import numpy as np
import pytest
from numbered_videos import B_FRAMES, write

from adatp_kernels.video.opening import open_file
from adatp_kernels.video.packets import scan, usable


def test_packets_are_put_into_the_order_in_which_frames_are_shown(tmp_path):
    clip = write(tmp_path / "clip.mp4", 24, gop=12, options=B_FRAMES)
    with open_file(clip) as container:
        packets = scan(container, 0)
    assert sorted(packets.frames) == list(range(24)) != packets.frames.tolist()
    assert [packets.pts[i] for i in packets.frames] == packets.times.tolist()
    assert len(set(np.diff(packets.times))) == 1 and packets.last_duration == packets.times[1] - packets.times[0]
    assert np.flatnonzero(packets.keys).tolist() == [0, 12] and packets.sound and not packets.cut_short


@pytest.mark.parametrize(
    ("stamps", "exactly", "reordered"),
    [
        ([0, 1, 2, 5], True, True),
        ([7], True, True),
        ([0, 3, 1, 2, 6, 4, 5], False, True),
        ([], False, False),
        ([0, None, 2], False, False),
        ([0, 1, 1, 2], False, False),
        ([*range(1000, 1100), *range(100)], False, False),  # a clock set back
        ([*range(100), *range(50, 150)], False, False),
        ([*range(100), *range(10**6, 10**6 + 100)], True, True),
    ],
)
def test_time_stamps_are_of_use_if_they_ascend(stamps, exactly, reordered):
    assert usable(stamps) == exactly and usable(stamps, reordered=True) == reordered

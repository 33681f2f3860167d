"""Which frames are taken: even in time, by number where all last as long."""

import numpy as np
import pytest

from adatp_kernels.video.choosing import count_for, evenly


def far(times, picks, count):
    """How far the picks are from evenly spaced times, each from its own."""
    return np.abs(times[picks] - np.linspace(times[0], times[-1], count))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 90, 1001])
@pytest.mark.parametrize("count", [2, 3, 7, 8, 32, 90, 5000])
def test_at_a_constant_rate_indices_are_evenly_spaced(total, count):
    expected = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    rounded = (np.arange(total) * 100 / 3).round().astype(np.int64)  # 30 a second in milliseconds
    for times in (None, np.arange(total, dtype=np.int64) * 512 - 1024, rounded, rounded // 1 + 5):
        if times is not None or count > 1:
            assert evenly(total, count, times) == expected


@pytest.mark.parametrize("total", [1, 2, 3, 8, 89, 90])
def test_a_single_frame_is_the_middle_one(total):
    assert evenly(total, 1, None) == [(total - 1) // 2] == evenly(total, 1, np.arange(total, dtype=np.int64) * 3003)


def test_frames_are_the_nearest_in_time_the_earlier_of_two():
    times = np.array([0, 10, 11, 12, 13, 40, 60, 100], dtype=np.int64)
    assert evenly(8, 3, times) == [0, 5, 7]  # 50 lies between 40 and 60
    assert evenly(8, 1, times) == [5]
    assert evenly(8, 2, times) == [0, 7]
    assert evenly(8, 8, times) == list(range(8)) == evenly(8, 9, times)


def test_each_frame_is_the_nearest_one_where_no_frame_is_wanted_twice():
    rng = np.random.default_rng(0)
    for _ in range(50):
        times = np.cumsum(rng.integers(1, 50, 200)).astype(np.int64)
        count = int(rng.integers(1, 12))
        picks = evenly(200, count, times)
        wanted = np.linspace(times[0], times[-1], count) if count > 1 else [(times[0] + times[-1]) / 2]
        assert picks == [int(np.abs(times - x).argmin()) for x in wanted]


def test_no_frame_is_taken_twice():
    times = np.array([*range(60), *range(100, 3000, 100)], dtype=np.int64)
    for count in range(1, len(times) + 2):
        picks = evenly(len(times), count, times)
        assert len(picks) == min(count, len(times)) and (np.diff(picks) > 0).all()
        if count > 1:
            assert picks[0] == 0 and picks[-1] == len(times) - 1
    # As many as there are frames far apart: those, and none of the many at the beginning but the first.
    assert far(times, evenly(len(times), 30, times), 30).max() <= 50


def test_frames_a_second_are_counted_by_duration():
    assert count_for(2, 3.0, 90) == 6
    assert count_for(0.1, 3.0, 90) == 1
    assert count_for(1000, 3.0, 90) == 90

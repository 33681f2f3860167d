"""Which of a video's frames to take: evenly spaced in time, both ends included."""

from __future__ import annotations

import numpy as np


def evenly(total: int, count: int, times: np.ndarray | None) -> list[int]:
    """Indices of `count` frames, ascending and all different; of all frames if there are not as many.

    Parameters
    ----------
    total : int
        Frames of the video, at least 1.
    count : int
        At least 1. A single frame is the middle one.
    times : int64 array [total], optional
        When each is shown, in ticks, ascending: the frames nearest to evenly spaced times are taken, of two as
        near the earlier one, and where one frame is the nearest to several times the next ones that are free.
        Without them, and where all frames are shown for as long, give or take a tick, evenly spaced indices.

    Returns
    -------
    list of int
    """
    count = min(count, total)
    if times is None or _constant(times):
        if count == 1:
            return [(total - 1) // 2]
        return np.linspace(0, total - 1, count).round().astype(int).tolist()
    first, last = int(times[0]), int(times[-1])
    wanted = np.linspace(first, last, count) if count > 1 else np.array([(first + last) / 2])
    after = np.searchsorted(times, wanted).clip(1, total - 1)
    nearest = np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
    # Pushed apart, forwards and then back from the end: a frame is taken once.
    steps = np.arange(count)
    apart = np.maximum.accumulate(nearest - steps) + steps
    return np.minimum(apart, total - count + steps).tolist()


def _constant(times: np.ndarray) -> bool:
    if len(times) < 3:
        return True
    even = np.linspace(times[0], times[-1], len(times))
    return bool(np.abs(times - even).max() <= 1)


def count_for(fps: float, duration: float, total: int) -> int:
    """How many frames `fps` a second are of a video of so many seconds and frames: at least 1, at most all."""
    return min(max(round(fps * duration), 1), total)

"""A video's frames: the file looked at, frames chosen, decoded the cheaper way, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from adatp_kernels.video.choosing import count_for, evenly
from adatp_kernels.video.error import VideoError, shown
from adatp_kernels.video.opening import check_file, find_stream, open_file
from adatp_kernels.video.packets import Packets, scan, usable
from adatp_kernels.video.picture import Canvas
from adatp_kernels.video.seeks import decode_by_seeks, plan
from adatp_kernels.video.straight import Decoded, Trust, decode_straight

_CLOCK = 1000  # frames a second in a video's metadata, so that its frames may lie anywhere in time


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video.

    Attributes
    ----------
    frames : uint8 array [n, H, W, 3]
        RGB, upright. All of the size of the first, to which the others of a file whose pictures change size are
        resized. Pixels are taken as square.
    seconds : tuple of float, or None
        When each is shown, from the video's first frame on; None where the file has no time stamps of use.
    duration : float or None
        Seconds from the first frame's beginning to the last one's end.
    num_source_frames : int
        Frames of the video, as far as they decode; as the file has them where not all had to be decoded.
    damaged : int
        Packets found damaged, most of which give no frame; 1 also where damage was concealed. Only what was decoded
        for these frames is known.
    size : (int, int)
        Width and height in the file, upright.
    evenly : "time" or "index"
        What frames are evenly spaced in; the index where there are no time stamps of use.
    """

    frames: np.ndarray
    seconds: tuple[float, ...] | None
    duration: float | None
    num_source_frames: int
    damaged: int
    size: tuple[int, int]
    evenly: Literal["time", "index"]

    def metadata(self) -> dict[str, Any]:
        """What the processors of transformers take as ``video_metadata``, with ``do_sample_frames=False``.

        They make the times of frames from numbers of frames at a fixed rate, and the rate of the frames that they are given
        from how many there are in all. So each frame's number is its time in milliseconds, and the number of all is such that
        frames as far apart as these come of it.
        """
        count, height, width = self.frames.shape[:3]
        size = {"height": height, "width": width}
        if self.seconds is None:
            return {**size, "fps": None, "duration": None, "frames_indices": [*range(count)], "total_num_frames": count}
        apart = (self.seconds[-1] - self.seconds[0]) / (count - 1) if count > 1 else self.duration or 1.0
        return {
            **size,
            "fps": float(_CLOCK),
            "duration": apart * count if self.duration is None else self.duration,
            "frames_indices": [round(_CLOCK * second) for second in self.seconds],
            "total_num_frames": max(1, round(_CLOCK * apart * count)),
        }

    def describe(self) -> str:
        """The video in one line for people."""
        count, height, width = self.frames.shape[:3]
        parts = [f"{count} of {self.num_source_frames} frames"]
        if self.evenly == "index":
            parts.append("evenly by number, as the file has no usable time stamps")
        elif count > 1:
            parts.append("evenly in time")
        if self.duration is not None and self.num_source_frames > 1:
            parts.append(f"{self.duration:.1f} s")
        parts.append(f"{self.size[0]}×{self.size[1]}")
        if (width, height) != self.size:
            parts.append(f"resized to {width}×{height}")
        if self.damaged:
            parts.append(f"{self.damaged} damaged packet{'s' * (self.damaged > 1)}")
        return ", ".join(parts)


def read_video(
    path: str | Path, *, num_frames: int | None = None, fps: float | None = None, max_pixels: int | None = None
) -> Video:
    """Sample frames evenly in time over a video, the first and the last included.

    Where the file allows it, frames are decoded from the key frames before them only, and each is known by its time
    stamp; otherwise, everything is decoded. Memory is that of the frames returned and of a few being decoded.

    Parameters
    ----------
    path : str or Path
        A file; of several video streams the default one is read, else the largest.
    num_frames : int, optional
        At least 1; a single frame is the middle one. A video with fewer frames gives all of them.
    fps : float, optional
        Above 0: so many frames for each second of the video's duration, at least 1, at most all. Exactly one of
        `num_frames` and `fps` is given.
    max_pixels : int, optional
        At least 1: area of a frame. Larger frames are made smaller as they are decoded, their aspect kept; smaller
        ones stay as they are.

    Returns
    -------
    Video

    Raises
    ------
    VideoError
        If the path is no file that can be read, or the file no video of which anything decodes.
    ValueError, TypeError
        If the other arguments are not as above.
    """
    _check_arguments(num_frames, fps, max_pixels)
    file = check_file(path)
    try:
        with open_file(file) as container:
            index = find_stream(container, file)
            stream = container.streams[index]
            packets = scan(container, index)
            decoder = stream.codec_context.name
            told = _told_duration(container, stream)
    except av.FFmpegError as error:
        raise VideoError(f"not a video that can be read: {shown(path)} ({error.strerror})") from error
    if len(packets.frames) == 0:
        raise VideoError(f"the video holds no frames: {shown(path)}")

    def choose(total: int, times: np.ndarray | None) -> list[int]:
        if num_frames is not None:
            return evenly(total, num_frames, times)
        assert fps is not None
        duration = _duration(packets, times, told)
        if duration is None:
            raise VideoError(f"fps: {shown(path)} says nothing of its duration; give num_frames")
        return evenly(total, count_for(fps, duration, total), times)

    canvas = Canvas(max_pixels)
    total, times = len(packets.frames), packets.times
    damaged = 0
    wanted = choose(total, times)
    runs = plan(packets, wanted, decoder)
    if runs is None or not decode_by_seeks(file, index, packets, runs, canvas):
        found, wanted = _decode_all(file, index, packets, wanted, choose, canvas)
        if not wanted:
            raise VideoError(f"not a video that can be read: nothing in {shown(path)} decodes")
        total, times, damaged = len(found.stamps), _times(found), found.damaged
    assert canvas.frames is not None
    seconds = None
    if times is not None:
        tick = packets.tick or Fraction(0)
        seconds = tuple(float(int(times[i] - times[0]) * tick) for i in wanted)
    return Video(
        frames=canvas.frames[: len(wanted)],
        seconds=seconds,
        duration=_duration(packets, times, told),
        num_source_frames=total,
        damaged=damaged,
        size=canvas.source_size,
        evenly="index" if times is None else "time",
    )


def _check_arguments(num_frames: int | None, fps: float | None, max_pixels: int | None) -> None:
    if (num_frames is None) == (fps is None):
        raise ValueError(f"num_frames, fps: expected exactly one of them, got {num_frames!r} and {fps!r}")
    for name, value in (("num_frames", num_frames), ("max_pixels", max_pixels)):
        if value is None:
            continue
        if not isinstance(value, Integral):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    if fps is not None and not isinstance(fps, Real):
        raise TypeError(f"fps: expected a number, got {fps!r}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps: expected a finite number above 0, got {fps!r}")


def _decode_all(
    file: Path,
    index: int,
    packets: Packets,
    wanted: list[int],
    choose: Callable[[int, np.ndarray | None], list[int]],
    canvas: Canvas,
) -> tuple[Decoded, list[int]]:
    """Decode from the beginning until the frames kept are those that `choose` takes of the frames there are."""
    found = Decoded()
    faulty = int(packets.cut_short)
    for trust in Trust:
        try:
            # Twice where packets make other frames than they promise; the second time it is known which.
            chosen = wanted
            for _ in range(3):
                wanted = chosen
                found = decode_straight(file, index, len(packets.frames), wanted, canvas, trust)
                chosen = choose(len(found.stamps), _times(found)) if found.stamps else wanted
                if chosen == wanted:
                    break
        except av.FFmpegError:
            faulty = 1
        else:
            if found.stamps:
                break
    # Of faults that are concealed it is known only that they are there.
    found.damaged = max(found.damaged, faulty)
    return found, wanted[: found.kept]


def _times(found: Decoded) -> np.ndarray | None:
    return np.array(found.stamps, dtype=np.int64) if usable(found.stamps) else None


def _told_duration(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float | None:
    """Seconds as the container has them, which is often a guess."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _duration(packets: Packets, times: np.ndarray | None, told: float | None) -> float | None:
    if times is None or packets.tick is None:
        return told
    last = packets.last_duration or (int(np.median(np.diff(times))) if len(times) > 1 else 0)
    return float((int(times[-1] - times[0]) + last) * packets.tick) or None

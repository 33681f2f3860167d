"""Reads frames, evenly spaced, from a video file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from adatp_kernels.demo.errors import DemoError


def read_frames(path: Path, count: int) -> np.ndarray:
    """Sample `count` frames evenly over a video, the first and the last included.

    Parameters
    ----------
    path : Path
    count : int
        At least 1. A video with fewer frames gives all of them.

    Returns
    -------
    uint8 array [frames, H, W, 3]

    Raises
    ------
    DemoError
        If the file is missing, is no video, or holds no frame.
    """
    if not path.is_file():
        raise DemoError(f"no such video file: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DemoError(f"not a video: {path} has no video stream")
            # Counting packets decodes nothing; containers often don't know their own length.
            total = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
        return _pick(path, total, count)
    except av.FFmpegError as error:
        raise DemoError(f"not a video that can be read: {path} ({error.strerror})") from error


def _pick(path: Path, total: int, count: int) -> np.ndarray:
    if total == 0:
        raise DemoError(f"the video holds no frames: {path}")
    wanted = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    frames: list[np.ndarray] = []
    decoded = 0
    with (
        av.open(str(path)) as container,
        tqdm(total=total, desc="reading video", unit="frame", delay=1, leave=False) as progress,
    ):
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(container.streams.video[0]):
            if decoded in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            decoded += 1
            progress.update()
    if len(frames) < len(wanted):  # packets that decode to nothing: sample what is really there
        return _pick(path, decoded, count)
    return np.stack(frames)

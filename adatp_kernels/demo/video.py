"""Frames of a user's video, with what is wrong with the file as a mistake of the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adatp_kernels.demo.errors import DemoError
from adatp_kernels.video import VideoError, read_video


def read_frames(path: Path, count: int) -> np.ndarray:
    """Sample `count` frames evenly in time over a video: uint8 [frames, H, W, 3], as `read_video` has them.

    Raises
    ------
    DemoError
        If the file is missing, is no video, or holds no frame.
    """
    try:
        return read_video(path, num_frames=count).frames
    except VideoError as error:
        raise DemoError(str(error)) from error

"""Frames from a video file: even in time, upright, in the colours that a player shows.

>>> from adatp_kernels.video import read_video
>>> video = read_video("holiday.mp4", num_frames=16)
>>> video.frames.shape
(16, 1080, 1920, 3)
"""

from adatp_kernels.video.error import VideoError
from adatp_kernels.video.reading import Video, read_video

__all__ = ["Video", "VideoError", "read_video"]

"""Films a synthetic clip: H.264 in an MP4, as any reader of videos takes it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

from adatp_kernels.demo.clips.scenes import Clip, render

FPS = 12


def film(path: Path, clip: Clip, scale: int = 8, repeats: int = 6) -> None:
    """Write a clip as a video file; reading as many evenly spaced frames as the clip has gives every one of them once.

    Parameters
    ----------
    path : Path
        File to write.
    clip : Clip
    scale : int
        Edge of the picture in multiples of 48 pixels.
    repeats : int
        How many frames of the video each frame of the clip lasts, at 12 a second.
    """
    frames = render(clip, scale)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            for _ in range(repeats):
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)

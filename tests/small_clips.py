"""Small video files for the tests of ``adatp ask``."""

import av
import numpy as np


def write_clip(path, frames=12, size=(64, 48), rate=2):
    """A video of three shots, in each of which a white square moves; `rate` frames a second."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            shot = 3 * number // frames
            picture = np.full((height, width, 3), (80 * shot, 50, 200 - 70 * shot), np.uint8)
            picture[height // 4 : height // 2, number : number + width // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path

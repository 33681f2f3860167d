"""Filmed clips: real H.264, and as many sampled frames as the clip has are its frames."""

import av
import numpy as np

from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.clips.scenes import SIZE, draw_clip, render
from adatp_kernels.demo.video import read_frames


def test_a_film_shows_every_frame_of_the_clip(tmp_path):
    clip = draw_clip(np.random.default_rng(0))
    film(tmp_path / "clip.mp4", clip, scale=4, repeats=3)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    frames = read_frames(tmp_path / "clip.mp4", 16)
    assert frames.shape == (16, 4 * SIZE, 4 * SIZE, 3)
    assert np.abs(frames.astype(float) - render(clip, scale=4)).mean() < 12

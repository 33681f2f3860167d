"""Video in: a filmed clip is a real H.264 file, and frames are sampled evenly from any file."""

import av
import numpy as np
import pytest

from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.clips.scenes import SIZE, render
from adatp_kernels.demo.errors import DemoError
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.video import read_frames
from adatp_kernels.mistakes import Mistake


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    film(path, example("held-out", 3).clip, scale=4, repeats=3)
    return path


def test_a_film_is_h264_and_gives_every_frame_of_its_clip_back(clip):
    with av.open(str(clip)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert read_frames(clip, 10**6).shape == (48, 4 * SIZE, 4 * SIZE, 3)
    frames, drawn = read_frames(clip, 16).astype(float), render(example("held-out", 3).clip, 4).astype(float)
    # Nearer to the frame that was filmed than to any other, in the mean colours of 16 × 16 pixels.
    small = [x.reshape(16, 12, 16, 12, 16, 3).mean((2, 4)).reshape(16, -1) for x in (frames, drawn)]
    distance = np.abs(small[0][:, None] - small[1][None]).mean(-1)
    assert distance.argmin(1).tolist() == list(range(16))


def test_frames_are_sampled_evenly_with_both_ends(clip):
    everything = read_frames(clip, 10**6)
    assert np.array_equal(read_frames(clip, 4), everything[np.linspace(0, len(everything) - 1, 4).round().astype(int)])
    assert np.array_equal(read_frames(clip, 1), everything[23:24])


def test_what_cannot_be_read_is_a_mistake_of_the_user_s(tmp_path):
    (tmp_path / "notes.mp4").write_text("this is no video")
    for name, message in (("missing.mp4", "no such video file"), ("notes.mp4", "not a video that can be read")):
        with pytest.raises(DemoError, match=message) as caught:
            read_frames(tmp_path / name, 4)
        assert isinstance(caught.value, Mistake)

"""Video in: the rendered clip is a real H.264 file, and frames are sampled evenly from any file."""

import av
import numpy as np
import pytest

from adatp_kernels.demo.clip import FPS, SHOTS, SIZE, render_clip
from adatp_kernels.demo.errors import DemoError
from adatp_kernels.demo.video import read_frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    render_clip(path, seconds_per_shot=0.5)
    return path


def test_clip_is_h264_of_several_shots(clip):
    with av.open(str(clip)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    frames = read_frames(clip, 10**6)
    assert frames.shape == (len(SHOTS) * FPS // 2, SIZE, SIZE, 3) and frames.dtype == np.uint8
    corner = frames[:, :16, :16].reshape(len(SHOTS), FPS // 2, -1, 3).astype(float).mean(2)
    within = np.abs(np.diff(corner, axis=1)).mean()
    between = np.abs(np.diff(corner.mean(1), axis=0)).mean()
    assert between > 5 * within


def test_frames_are_sampled_evenly_with_both_ends(clip):
    everything = read_frames(clip, 10**6)
    assert np.array_equal(read_frames(clip, 4), everything[np.linspace(0, len(everything) - 1, 4).round().astype(int)])
    assert np.array_equal(read_frames(clip, 1), everything[:1])


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "notes.mp4").write_text("this is no video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        for frame in (sound, None):
            container.mux(stream.encode(frame))
    with av.open(str(tmp_path / "empty.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 32
        container.start_encoding()
    for name, message in {
        "missing.mp4": "no such video file",
        "notes.mp4": "not a video that can be read",
        "sound.mp4": "no video stream",
        "empty.avi": "holds no frames",
    }.items():
        with pytest.raises(DemoError, match=message):
            read_frames(tmp_path / name, 4)

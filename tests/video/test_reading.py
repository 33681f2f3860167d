"""A video read from its file: the frames, when they are, and what is said of the file."""

from fractions import Fraction

import av
import numpy as np
import pytest
from numbered_videos import B_FRAMES, cut, damage, numbers, write

from adatp_kernels.video import Video, VideoError, read_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def clip(folder):
    return write(folder / "clip.mp4", 60, gop=10, options=B_FRAMES)


def even(total, count):
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def test_frames_times_and_the_file_are_told(clip):
    video = read_video(clip, num_frames=4)
    assert isinstance(video, Video) and video.frames.dtype == np.uint8 and video.frames.shape == (4, 48, 64, 3)
    assert numbers(video.frames) == even(60, 4) == [0, 20, 39, 59]
    assert video.seconds == pytest.approx([0, 20 / 30, 39 / 30, 59 / 30])
    assert video.duration == pytest.approx(2.0)
    assert (video.num_source_frames, video.damaged, video.size, video.evenly) == (60, 0, (64, 48), "time")
    assert video.describe() == "4 of 60 frames, evenly in time, 2.0 s, 64×48"
    small = read_video(str(clip), num_frames=1, max_pixels=800)
    assert numbers(small.frames) == [29] and small.seconds == pytest.approx([29 / 30])
    assert small.describe() == "1 of 60 frames, 2.0 s, 64×48, resized to 32×24"


def test_frames_a_second(clip):
    for fps, count in ((2, 4), (0.1, 1), (30, 60), (1e6, 60), (Fraction(3, 2), 3)):
        assert numbers(read_video(clip, fps=fps).frames) == (even(60, count) if count > 1 else [29])


def test_arguments_that_are_wrong_are_named(clip):
    for arguments, error, words in (
        ({}, ValueError, "num_frames, fps: expected exactly one of them, got None and None"),
        ({"num_frames": 2, "fps": 1.0}, ValueError, "exactly one of them, got 2 and 1.0"),
        ({"num_frames": 0}, ValueError, "num_frames: expected at least 1, got 0"),
        ({"num_frames": 2.0}, TypeError, "num_frames: expected an integer, got 2.0"),
        ({"num_frames": "2"}, TypeError, "num_frames: expected an integer, got '2'"),
        ({"num_frames": 2, "max_pixels": -1}, ValueError, "max_pixels: expected at least 1, got -1"),
        ({"fps": 0}, ValueError, "fps: expected a finite number above 0, got 0"),
        ({"fps": float("nan")}, ValueError, "fps: expected a finite number above 0, got nan"),
        ({"fps": "2"}, TypeError, "fps: expected a number, got '2'"),
    ):
        with pytest.raises(error, match=words) as caught:
            read_video(clip, **arguments)
        assert not isinstance(caught.value, VideoError)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_frames_are_even_in_time_where_their_rate_varies(folder, name):
    ticks = [*range(0, 1200, 20), *range(1200, 1200 + 30 * 600, 600)]  # 60 in two seconds, 30 in half a minute
    path = write(folder / name, 90, times=ticks, options=B_FRAMES)
    video = read_video(path, num_frames=7)
    assert numbers(video.frames) == [0, 63, 68, 73, 79, 84, 89]
    assert video.seconds == pytest.approx([ticks[i] / 600 for i in (0, 63, 68, 73, 79, 84, 89)], abs=2e-3)
    assert video.evenly == "time" and video.duration == pytest.approx(31, abs=1.1)
    assert numbers(read_video(path, num_frames=1).frames) == [73]
    assert numbers(read_video(path, num_frames=1000).frames) == list(range(90))
    assert len(read_video(path, fps=1).frames) == round(video.duration)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "mpeg4", {"bf": "2", "qscale": "2"}),
        ("b.avi", "mjpeg", {}),
        ("c.webm", "libvpx", {"b": "1M", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("d.webm", "libvpx-vp9", {"b": "1M", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
        ("e.ts", "mpeg2video", {"bf": "2", "b": "1M"}),
        ("f.ts", "libx264", {**B_FRAMES, "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}),
        ("g.mkv", "libx264", B_FRAMES),
        ("h.gif", "gif", {}),
        ("i.flv", "libx264", B_FRAMES),
        ("j.mov", "png", {}),
        ("k.mkv", "ffv1", {}),
    ],
)
def test_every_codec_and_container_gives_the_frames_asked_for(folder, name, codec, options):
    pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8", "png": "rgb24", "ffv1": "bgr0"}.get(codec, "yuv420p")
    path = write(folder / name, 60, codec=codec, pix_fmt=pix_fmt, gop=12, options=options)
    for count in (1, 2, 3, 7, 1000):
        video = read_video(path, num_frames=count)
        assert numbers(video.frames) == (even(60, count) if count > 1 else [29])
        assert video.num_source_frames == 60 and video.damaged == 0
        assert video.seconds == pytest.approx([i / 30 for i in (even(60, count) if count > 1 else [29])], abs=0.04)


def test_without_time_stamps_frames_are_even_by_number(folder):
    raw = write(folder / "raw.h264", 30, container_format="h264")
    video = read_video(raw, num_frames=4)
    assert numbers(video.frames) == even(30, 4)
    assert (video.seconds, video.evenly) == (None, "index") and "by number" in video.describe()
    with pytest.raises(VideoError, match="fps: .*raw.h264 says nothing of its duration; give num_frames"):
        read_video(raw, fps=1)


def test_a_clock_that_starts_anew_is_no_time(folder):
    parts = [write(folder / f"part{i}.ts", 20, first=20 * i, gop=5) for i in range(2)]
    (folder / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    video = read_video(folder / "both.ts", num_frames=5)
    assert numbers(video.frames) == even(40, 5) and video.evenly == "index"


def test_pictures_that_change_size_get_that_of_the_first(folder):
    with av.open(str(folder / "grows.webm"), "w") as out:
        stream, stamp = None, 0
        for i, size in enumerate(((64, 48), (128, 96), (48, 64))):
            part = write(folder / f"part{i}.webm", 10, first=10 * i, codec="libvpx", size=size, options={"b": "1M"})
            with av.open(str(part)) as source:
                stream = stream or out.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.stream, packet.time_base = stream, Fraction(1, 1000)
                        packet.pts = packet.dts = stamp
                        stamp += 33
                        out.mux(packet)
    for count in (3, 30):
        video = read_video(folder / "grows.webm", num_frames=count)
        assert numbers(video.frames) == even(30, count) and video.frames.shape[1:] == (48, 64, 3)


def test_damage_costs_only_the_frames_it_hits(folder, clip, capfd):
    jpeg = write(folder / "jpeg.avi", 60, codec="mjpeg", pix_fmt="yuvj420p", options={})
    for name, path, seed in (("noise.mp4", clip, 0), ("hole.mp4", clip, None), ("noise.avi", jpeg, 0)):
        video = read_video(damage(path, folder / name, range(22, 26), seed), num_frames=1000)
        got = numbers(video.frames)
        assert video.damaged > 0 and f"{video.damaged} damaged packet" in video.describe()
        assert 50 <= len(got) == video.num_source_frames < 60
        assert got[:20] == list(range(20)) and got[-30:] == list(range(30, 60))
        some = read_video(folder / name, num_frames=16)
        assert len(some.frames) == 16 and some.damaged == video.damaged
        assert numbers(read_video(folder / name, num_frames=2).frames) == [0, 59]
        if path is clip:  # the middle one is found by a seek to where the damage is
            assert read_video(folder / name, num_frames=1).damaged == video.damaged
        else:
            assert video.damaged == 4 and len(got) == 56
    with pytest.raises(VideoError, match=r"nothing in .*none.mp4 decodes"):
        read_video(damage(clip, folder / "none.mp4", range(60), spared=0), num_frames=3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["cut.mp4", "cut.ts", "cut.avi"])
def test_of_a_file_cut_short_there_is_what_decodes(folder, name):
    codec, options = ("mpeg4", {"qscale": "2"}) if name == "cut.avi" else ("libx264", B_FRAMES)
    muxer = {"movflags": "faststart"} if name == "cut.mp4" else {}
    # A transport stream is cut into pieces of 188 bytes, of which the last is dropped if it is not whole.
    size, least = ((256, 192), 200) if name == "cut.ts" else ((64, 48), 0)
    whole = write(folder / f"whole-{name}", 60, codec=codec, gop=10, options=options, muxer=muxer, size=size)
    video = read_video(cut(whole, folder / name, 40, least), num_frames=1000)
    assert numbers(video.frames)[:40] == list(range(40)) and len(video.frames) in (40, 41)
    assert video.damaged == 1 and video.num_source_frames == len(video.frames)
    assert numbers(read_video(folder / name, num_frames=3).frames)[:2] in ([0, 20], [0, 19])


def test_an_edit_list_cuts_frames(folder):
    """Frames that are needed to decode others, and not to be shown, are not."""
    whole = write(folder / "whole.mp4", 30, options=B_FRAMES)
    data = bytearray(whole.read_bytes())
    at = data.index(b"elst") + 4  # version and flags, entries, duration, media time
    start = int.from_bytes(data[at + 12 : at + 16], "big")
    with av.open(str(whole)) as container:
        tick = round(1 / 30 / container.streams.video[0].time_base)
    data[at + 12 : at + 16] = (start + 12 * tick).to_bytes(4, "big")
    (folder / "cut-in.mp4").write_bytes(data)
    video = read_video(folder / "cut-in.mp4", num_frames=100)
    assert numbers(video.frames) == list(range(12, 30)) and video.seconds[0] == 0
    assert numbers(read_video(folder / "cut-in.mp4", num_frames=3).frames) == [12, 20, 29]

"""What is opened: files only, the stream a player would show, and what all else is called."""

import os
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from numbered_videos import number, numbers, picture, write

from adatp_kernels.video import VideoError, read_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", 12)


def sound_into(container):
    stream = container.add_stream("aac", rate=8000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    silence.sample_rate = 8000
    return stream, silence


def refused(path):
    with pytest.raises(VideoError) as caught:
        read_video(path, num_frames=2)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def test_what_is_no_file_is_called_what_it_is(tmp_path, clip, monkeypatch):
    assert refused(tmp_path / "missing.mp4") == f"no such video file: {tmp_path}/missing.mp4"
    assert "an address, not a file: https://example.org/a.mp4" in refused("https://example.org/a.mp4")
    assert "an address, not a file: https:/example.org" in refused(Path("https://example.org/a.mp4"))
    assert "without file://" in refused(f"file://{clip}")
    assert "the path is empty" in refused("")
    assert "a folder" in refused(tmp_path) and "a folder" in refused(Path(""))
    assert "a device" in refused("/dev/null")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "pipe" in refused(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(tmp_path)  # the names of sockets are short
        unix.bind("socket.mp4")
        assert "socket" in refused("socket.mp4")
    assert "null" in refused("a\0b.mp4")
    assert "no such video file" in refused("a" * 5000)
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert "no such video file" in refused(tmp_path / "loop.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "is empty" in refused(tmp_path / "empty.mp4")
    assert "two\\nlines\ufffd.mp4" in refused(os.fsdecode(b"two\nlines\xff.mp4"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_no_missing_one(tmp_path, clip):
    locked = tmp_path / "locked.mp4"
    locked.write_bytes(clip.read_bytes())
    locked.chmod(0)
    assert "cannot be opened" in refused(locked)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"this is no video\n" * 50, "text"),
        ("notes.mp4", b"this is no video\n" * 50, "not a video that can be read"),
        ("page.mp4", b"<html><body>404 not found</body></html>", "not a video that can be read"),
        ("noise.mp4", np.random.default_rng(1).bytes(50000), "not a video that can be read"),
        ("words.srt", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n", "no video stream"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def test_sound_is_no_video_and_its_cover_none_either(tmp_path):
    for name, cover in (("sound.mp4", False), ("song.mp4", True)):
        with av.open(str(tmp_path / name), "w") as container:
            stream, silence = sound_into(container)
            if cover:
                art = container.add_stream("png", rate=1)
                art.width, art.height, art.pix_fmt = 64, 48, "rgb24"
                art.disposition = Disposition.attached_pic.value
                container.start_encoding()
                container.mux(art.encode(av.VideoFrame.from_ndarray(picture(1))))
            for frame in (silence, None):
                container.mux(stream.encode(frame))
        message = refused(tmp_path / name)
        assert "no video stream" in message and ("cover" in message) == cover
    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 32
        container.start_encoding()
    assert "holds no frames" in refused(tmp_path / "none.avi")


def mux(path, streams):
    """One file of several: (clip, disposition) each, the first stream of each, in this order."""
    with av.open(str(path), "w") as out:
        sources = [av.open(str(clip)) for clip, _ in streams]
        made = []
        for source, (_, disposition) in zip(sources, streams, strict=True):
            stream = out.add_stream_from_template(source.streams[0])
            stream.disposition = disposition.value
            made.append(stream)
        for source, stream in zip(sources, made, strict=True):
            for packet in source.demux(source.streams[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
            source.close()
    return path


def test_the_stream_is_the_one_that_a_player_shows(tmp_path, clip):
    small = write(tmp_path / "small.mp4", 3, first=200, size=(48, 32))
    cover = write(tmp_path / "cover.mov", 1, first=255, size=(128, 96), codec="png", pix_fmt="rgb24", options={})
    none, default = Disposition(0), Disposition.default
    for name, streams, first in (
        ("default.mkv", [(small, default), (clip, none)], 200),
        ("second.mkv", [(small, none), (clip, default)], 0),
        ("neither.mkv", [(small, none), (clip, none)], 0),
        ("both.mkv", [(small, default), (clip, default)], 0),
        ("cover.mp4", [(cover, Disposition.attached_pic), (clip, none)], 0),
    ):
        video = read_video(mux(tmp_path / name, streams), num_frames=100)
        assert numbers(video.frames) == list(range(first, first + (3 if first else 12))), name


@pytest.mark.parametrize("name", ["a:b.mp4", "img%03d.mp4", "my 'clip' ü [1]*?.mp4", "-i.mp4", "https:x.mp4", "noext"])
def test_a_name_is_nothing_but_a_name(tmp_path, clip, monkeypatch, name):
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    for path in (name, Path(name), tmp_path / name):
        assert numbers(read_video(path, num_frames=2).frames) == [0, 11]


def test_a_picture_s_name_is_no_pattern_and_a_picture_a_video_of_one_frame(tmp_path):
    for name, value in (("img%03d.png", 7), ("img001.png", 1), ("img002.png", 2)):
        still = write(tmp_path / "still.mov", 1, first=value, codec="png", pix_fmt="rgb24", options={})
        with av.open(str(still)) as container:
            (tmp_path / name).write_bytes(bytes(next(container.demux(video=0))))
    video = read_video(tmp_path / "img%03d.png", num_frames=9)
    assert numbers(video.frames) == [7] and video.evenly == "time"


def test_a_playlist_does_not_lead_to_the_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name, text in (
            ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{address}\n#EXT-X-ENDLIST\n"),
            ("list.ffconcat", f"ffconcat version 1.0\nfile {address}\n"),
        ):
            (tmp_path / name).write_text(text)
            assert "not a video" in refused(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_film_s_words_may_be_in_any_encoding(tmp_path):
    clip = write(tmp_path / "clip.avi", 3, codec="mpeg4", options={})
    with av.open(str(clip)) as source, av.open(str(tmp_path / "named.avi"), "w") as out:
        out.metadata["title"] = "TITLE"
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "named.avi").read_bytes()
    assert b"TITLE" in data
    (tmp_path / "named.avi").write_bytes(data.replace(b"TITLE", b"\xe9t\xe9\xff!"))
    assert number(read_video(tmp_path / "named.avi", num_frames=3).frames[2]) == 2

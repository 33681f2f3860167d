"""Seeks give the frames that decoding everything gives, or none at all."""

import dataclasses

import numpy as np
import pytest
from numbered_videos import B_FRAMES, numbers, places, write

from adatp_kernels.video import read_video, reading, seeks
from adatp_kernels.video.opening import check_file, find_stream, open_file
from adatp_kernels.video.packets import scan
from adatp_kernels.video.picture import Canvas


@pytest.fixture(
    scope="module", params=["closed.mp4", "open.mp4", "open.mkv", "open.ts", "fragments.mp4", "intra.avi", "mpeg2.ts"]
)
def clip(request, tmp_path_factory):
    name = request.param
    codec, pix_fmt = {"intra.avi": ("mjpeg", "yuvj420p"), "mpeg2.ts": ("mpeg2video", "yuv420p")}.get(
        name, ("libx264", "yuv420p")
    )
    options = dict(B_FRAMES) if codec == "libx264" else {}
    if name.startswith("open"):
        options["x264-params"] += ":open-gop=1"
    if name == "mpeg2.ts":
        options = {"bf": "2", "b": "1M", "flags": "-cgop"}
    return write(
        tmp_path_factory.mktemp("seeks") / name,
        200,
        codec=codec,
        pix_fmt=pix_fmt,
        gop=12,
        options=options,
        muxer={"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else {},
    )


def scanned(path):
    file = check_file(path)
    with open_file(file) as container:
        index = find_stream(container, file)
        return file, index, scan(container, index), container.streams[index].codec_context.name


def test_every_frame_alone_and_in_company_is_the_right_one(clip):
    file, index, packets, decoder = scanned(clip)
    sought = 0
    rng = np.random.default_rng(0)
    for wanted in [
        *([i] for i in range(0, 200, 7)),
        [0, 199],
        [11, 12, 13],
        *(sorted(rng.choice(200, 4, False)) for _ in range(4)),
    ]:
        runs = seeks.plan(packets, [int(i) for i in wanted], decoder)
        if runs is None:
            continue
        canvas = Canvas(None)
        assert seeks.decode_by_seeks(file, index, packets, runs, canvas)
        assert numbers(canvas.frames) == list(wanted)
        sought += 1
    assert sought > 20


def test_few_frames_of_many_are_sought_and_many_are_not(clip, monkeypatch):
    whole = read_video(clip, num_frames=200)
    monkeypatch.setattr(reading, "decode_straight", lambda *_: pytest.fail("everything was decoded"))
    few = read_video(clip, num_frames=3)
    assert numbers(few.frames) == [0, 100, 199] and np.array_equal(few.frames, whole.frames[[0, 100, 199]])
    assert few.num_source_frames == 200 and few.damaged == 0
    monkeypatch.undo()
    monkeypatch.setattr(reading, "decode_by_seeks", lambda *_: pytest.fail("frames were sought"))
    assert numbers(read_video(clip, num_frames=150).frames) == np.linspace(0, 199, 150).round().tolist()


def test_the_clips_with_open_groups_show_frames_before_the_key_frame_they_follow(clip):
    _, _, packets, _ = scanned(clip)
    keys = np.flatnonzero(packets.keys)
    leading = packets.pts[keys[5] + 1] < packets.pts[keys[5]]
    assert len(keys) > 10 and leading == (clip.name.split(".")[0] in ("open", "mpeg2"))


def test_frames_at_the_beginning_that_lack_their_key_frame_are_no_frames(tmp_path):
    options = {**B_FRAMES, "x264-params": "b-adapt=0:scenecut=0:open-gop=1"}
    clip = write(tmp_path / "clip.ts", 200, gop=12, options=options, muxer={"mpegts_flags": "pat_pmt_at_frames"})
    clip.write_bytes(clip.read_bytes()[places(clip)[20][0] // 188 * 188 :])
    there = numbers(read_video(clip, num_frames=1000).frames)
    first = there[0]
    assert 20 < first < 40 and there == list(range(first, 200))
    assert numbers(read_video(clip, num_frames=1).frames) == [there[(len(there) - 1) // 2]]


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video", "libx264"])
def test_a_file_that_marks_every_packet_as_a_key_leads_to_no_wrong_frame(tmp_path, codec):
    options = B_FRAMES if codec == "libx264" else {"b": "1M", "bf": "2"}
    clip = write(tmp_path / "clip.mp4", 100, codec=codec, gop=12, options=options)
    whole = read_video(clip, num_frames=100).frames
    data = clip.read_bytes()
    assert data.count(b"stss") == 1  # without the table, all samples can be sought
    clip.write_bytes(data.replace(b"stss", b"free"))
    for count in (1, 2, 3, 5):
        wanted = np.linspace(0, 99, count).round().astype(int) if count > 1 else [49]
        assert np.array_equal(read_video(clip, num_frames=count).frames, whole[wanted])


def wrong_times(packets):
    """All frames but the first a tick late: none is where it is said to be."""
    late = packets.times.copy()
    late[1:] += 1
    return {"times": late}


def wrong_keys(packets):
    """Decoding is said to begin at any packet."""
    return {"keys": [True] * len(packets.keys)}


def wrong_places(packets):
    """Packets that are not in the file."""
    return {"sizes": [size + 1 for size in packets.sizes]}


@pytest.mark.parametrize("lie", [wrong_times, wrong_keys, wrong_places])
def test_packets_that_promise_what_is_not_so_lead_to_no_wrong_frame(clip, monkeypatch, lie):
    if lie is not wrong_places and clip.name == "intra.avi":
        pytest.skip("so it is, and a tick is a frame")
    asked = []
    true_seek = reading.decode_by_seeks
    monkeypatch.setattr(reading, "scan", lambda *a: dataclasses.replace(found := scan(*a), **lie(found)))
    monkeypatch.setattr(reading, "decode_by_seeks", lambda *a: asked.append(true_seek(*a)) or asked[-1])
    for count in (1, 2, 3):
        expected = [99] if count == 1 else np.linspace(0, 199, count).round().tolist()
        assert numbers(read_video(clip, num_frames=count).frames) == expected
    assert asked
    if lie is not wrong_keys:
        assert not any(asked)


def test_a_key_s_mark_is_trusted_only_of_codecs_that_mean_it(tmp_path):
    clip = write(tmp_path / "clip.gif", 60, codec="gif", pix_fmt="rgb8", options={})
    _, _, packets, decoder = scanned(clip)
    everywhere = dataclasses.replace(packets, keys=[True] * 60)
    assert decoder == "gif" and seeks.plan(everywhere, [30], decoder) is None
    assert seeks.plan(everywhere, [30], "h264") is not None

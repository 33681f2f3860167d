"""Decodes only from the key frames before the frames that are wanted, where that is less than everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.codec.context import ThreadType
from tqdm import tqdm

from adatp_kernels.video.opening import open_file
from adatp_kernels.video.packets import Packets
from adatp_kernels.video.picture import Canvas
from adatp_kernels.video.threads import frames_at_once

# Decoders that need nothing from before a packet which is marked as a key; a GIF's, for one, do.
_TRUE_KEYS = {
    "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "h264", "hevc", "vvc", "mpeg1video",
    "mpeg2video", "mpeg4", "h263", "theora", "mjpeg", "prores", "dnxhd", "ffv1",
}  # fmt: skip

# Frames that a seek costs beside those it decodes: threads and reordering fill up anew.
_RESTART = 8


@dataclass(frozen=True)
class Run:
    """Frames that one seek leads to: decoding begins at packet `key` and ends with the last of `frames`."""

    key: int
    frames: list[int]
    end: int


class NotAsExpected(Exception):
    """What a seek led to is not what the packets promised."""


def plan(packets: Packets, wanted: Sequence[int], decoder: str) -> list[Run] | None:
    """The seeks that lead to the frames `wanted`, or None where decoding everything is as good or safer."""
    if packets.times is None or not packets.sound or decoder not in _TRUE_KEYS:
        return None
    shown = [(i, packets.pts[i]) for i, key in enumerate(packets.keys) if key]
    keys = [i for i, pts in shown if pts is not None]
    times = [pts for _, pts in shown if pts is not None]
    if not keys or times[0] > packets.times[0]:
        return None  # begins with frames that do not decode: how many is found out by trying
    runs: list[Run] = []
    for frame in wanted:
        packet, time = int(packets.frames[frame]), int(packets.times[frame])
        at = int(np.searchsorted(keys, packet, side="right")) - 1
        # A frame that is shown before the key frame it follows may need the group of frames before.
        while at >= 0 and times[at] > time:
            at -= 1
        if at < 0:
            return None
        if runs and keys[at] <= runs[-1].end + _RESTART:
            runs[-1] = Run(runs[-1].key, [*runs[-1].frames, frame], max(runs[-1].end, packet))
        else:
            runs.append(Run(keys[at], [frame], packet))
    cost = sum(run.end - run.key + 1 + _RESTART for run in runs)
    return runs if 2 * cost < len(packets.frames) else None


def decode_by_seeks(path: Path, index: int, packets: Packets, runs: Sequence[Run], canvas: Canvas) -> bool:
    """Put the frames of all runs on the canvas, one after the other.

    Every frame that is decoded has to be the next of those that the packets promise. False where one is not, or
    something is damaged: then the canvas holds nothing of use, and the file has to be decoded from its beginning.
    """
    count, place = sum(len(run.frames) for run in runs), 0
    canvas.clear(count)
    try:
        with (
            open_file(path) as container,
            tqdm(total=count, desc="reading video", unit="frame", delay=1, disable=None, leave=False) as progress,
        ):
            stream = container.streams[index]
            stream.thread_type = ThreadType.AUTO
            stream.thread_count = frames_at_once(stream)
            for run in runs:
                for frame in _run(container, stream, packets, run):
                    canvas.put(place, count, frame)
                    place += 1
                    progress.update()
    except (av.FFmpegError, NotAsExpected):
        return False
    return True


def _run(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, packets: Packets, run: Run
) -> Iterator[av.VideoFrame]:
    assert packets.times is not None
    demuxed, key = _seek(container, stream, packets, run.key)
    packet: av.Packet | None = key
    expected = int(np.searchsorted(packets.times, key.pts))
    wanted = iter(run.frames)
    next_wanted = next(wanted)
    while packet is not None:
        for frame in packet.decode():
            if expected == len(packets.times) or frame.pts != packets.times[expected] or frame.is_corrupt:
                raise NotAsExpected
            if expected == next_wanted:
                yield frame
                following = next(wanted, None)
                if following is None:
                    return
                next_wanted = following
            expected += 1
        packet = next(demuxed, None)
    raise NotAsExpected


def _seek(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, packets: Packets, key: int
) -> tuple[Iterator[av.Packet], av.Packet]:
    """Packets from `key` on, or from a key frame not far before: (those that follow, the first)."""
    # Containers index by either stamp, and some land after what was asked for.
    earlier = max((i for i in range(max(key - 300, 0), key) if packets.keys[i]), default=key)
    for stamp in (packets.pts[key], packets.dts[key], packets.dts[earlier]):
        if stamp is None:
            continue
        container.seek(stamp, stream=stream)
        demuxed = container.demux(stream)
        for packet in demuxed:
            if packet.is_keyframe and packet.size > 0:
                break
        else:
            continue
        if _known(packets, packet, key):
            return demuxed, packet
    raise NotAsExpected


def _known(packets: Packets, packet: av.Packet, key: int) -> bool:
    """Whether this is the packet `key`, or a key frame among the 300 before."""
    return any(
        packets.keys[i] and (packets.pts[i], packets.sizes[i]) == (packet.pts, packet.size)
        for i in range(key, max(key - 300, -1), -1)
    )

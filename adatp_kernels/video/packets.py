"""What a file's packets say, undecoded, about its frames: how many there are, when, and where decoding can begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from tqdm import tqdm

# Decoders hold back 16 frames at most to bring them into order; two fields a frame.
_REORDERED = 32


@dataclass(frozen=True)
class Packets:
    """A stream's packets in decoding order.

    Attributes
    ----------
    pts, sizes, keys : list
        Of each packet: time stamp in ticks or None, bytes, and whether decoding can begin there.
    dts : list
        Of each packet: when it is to be decoded, in ticks, or None.
    frames : array of int
        Those that make the frames to be shown, in the order in which they are shown.
    times : int64 array or None
        Time stamps of `frames`, ascending; None if they say nothing that can be used.
    tick : Fraction or None
        Seconds of a tick.
    last_duration : int or None
        Ticks for which the last frame is shown, as far as its packet knows.
    sound : bool
        Whether the file could be read to its end and no packet is marked as damaged.
    cut_short : bool
        Whether it could not, or its last packet is so marked.
    """

    pts: list[int | None]
    sizes: list[int]
    keys: list[bool]
    dts: list[int | None]
    frames: np.ndarray
    times: np.ndarray | None
    tick: Fraction | None
    last_duration: int | None
    sound: bool
    cut_short: bool


def scan(container: av.container.InputContainer, index: int) -> Packets:
    """Read all packets of a stream, decoding none."""
    stream = container.streams[index]
    pts: list[int | None] = []
    dts: list[int | None] = []
    sizes: list[int] = []
    keys: list[bool] = []
    durations: list[int] = []
    visible: list[int] = []
    sound, cut_short = True, False
    try:
        for packet in tqdm(
            container.demux(stream),
            desc="indexing video",
            total=stream.frames or None,
            unit="packet",
            delay=1,
            disable=None,
            leave=False,
        ):
            if packet.size == 0:
                continue
            if not packet.is_discard:  # an edit list cuts it; it may be needed to decode others
                visible.append(len(pts))
            cut_short = packet.is_corrupt
            sound = sound and not packet.is_corrupt
            pts.append(packet.pts)
            dts.append(packet.dts)
            sizes.append(packet.size)
            keys.append(packet.is_keyframe)
            durations.append(packet.duration or 0)
    except av.FFmpegError:
        sound, cut_short = False, True
    frames = np.array(visible, dtype=np.int64)
    stamps = [pts[i] for i in visible]
    times = None
    if usable(stamps, reordered=True):
        order = np.argsort(np.array(stamps, dtype=np.int64))
        frames, times = frames[order], np.array(stamps, dtype=np.int64)[order]
    last = durations[int(frames[-1])] if len(frames) else 0
    return Packets(pts, sizes, keys, dts, frames, times, stream.time_base, last or None, sound, cut_short)


def usable(stamps: Sequence[int | None], *, reordered: bool = False) -> bool:
    """Whether time stamps are all there, differ, and ascend: exactly, or but for what decoders put in order."""
    if not stamps or any(stamp is None for stamp in stamps):
        return False
    values = np.array(stamps, dtype=np.int64)
    if not reordered:
        return bool((np.diff(values) > 0).all())
    order = np.argsort(values, kind="stable")
    # Where a recording starts its clock anew, frames would be far from their place.
    near = np.abs(order - np.arange(len(values))).max() <= _REORDERED
    return bool(near and (np.diff(values[order]) > 0).all())

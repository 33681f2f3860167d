"""Decodes a stream from its first frame to its last, and keeps those that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import av
from av.codec.context import ThreadType
from tqdm import tqdm

from adatp_kernels.video.opening import open_file
from adatp_kernels.video.picture import Canvas
from adatp_kernels.video.threads import frames_at_once


class Trust(Enum):
    """How far a file is believed to be whole, which says what a fault in it means."""

    WHOLE = "any fault is raised"
    DAMAGED = "a fault costs the packet that raises it, or is concealed"


@dataclass
class Decoded:
    """What a pass over a file found.

    Attributes
    ----------
    stamps : list of (int or None)
        Time stamp in ticks of every frame, in the order in which they are shown.
    damaged : int
        Packets that raised a fault; most of them give no frame.
    kept : int
        How many of the wanted frames there were.
    """

    stamps: list[int | None] = field(default_factory=list)
    damaged: int = 0
    kept: int = 0


def decode_straight(path: Path, index: int, total: int, wanted: Sequence[int], canvas: Canvas, trust: Trust) -> Decoded:
    """Put the frames `wanted`, ascending indices in the order in which frames are shown, on the canvas.

    Raises
    ------
    av.FFmpegError
        At a fault, unless `trust` forgives it.
    """
    found = Decoded()
    canvas.clear(len(wanted))
    with (
        open_file(path) as container,
        tqdm(total=total, desc="reading video", unit="frame", delay=1, disable=None, leave=False) as progress,
    ):
        stream = container.streams[index]
        if trust is Trust.WHOLE:
            stream.thread_type = ThreadType.AUTO
            stream.thread_count = frames_at_once(stream)
            stream.codec_context.options = {"err_detect": "explode"}
        else:
            # Frames in parallel would report a fault with a later packet, lose frames at the end for it and conceal
            # less.
            stream.thread_type = ThreadType.SLICE
        for frame in _frames(container, stream, trust, found):
            if found.kept < len(wanted) and len(found.stamps) == wanted[found.kept]:
                canvas.put(found.kept, len(wanted), frame)
                found.kept += 1
            found.stamps.append(frame.pts)
            progress.update()
    return found


def _frames(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, trust: Trust, found: Decoded
) -> Iterator[av.VideoFrame]:
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
        except av.FFmpegError:  # the file ends amid something; the decoder gives what it still has
            if trust is Trust.WHOLE:
                raise
            found.damaged += 1
            yield from stream.codec_context.decode(None)
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if trust is Trust.WHOLE:
                raise
            found.damaged += 1
            continue
        yield from frames

"""Small videos whose frames carry their number in the picture, so that a wrong frame is seen."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (64, 48)
PATCHES = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
QUALITY = {"crf": "10", "preset": "ultrafast", "threads": "1"}
B_FRAMES = {"crf": "10", "preset": "veryfast", "threads": "1", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Eight bits as bars, their complements below, four colours under both: uint8 [H, W, 3]."""
    width, height = size
    bars = np.array([number >> bit & 1 for bit in range(8)], dtype=bool)
    out = np.empty((height, width, 3), np.uint8)
    columns = np.arange(width) * 8 // width
    out[: height // 3] = np.where(bars[columns], 235, 20)[None, :, None]
    out[height // 3 : 2 * height // 3] = np.where(bars[columns], 20, 235)[None, :, None]
    out[2 * height // 3 :] = PATCHES[np.arange(width) * 4 // width]
    return out


def number(image: np.ndarray) -> int | None:
    """Number that an image carries; None if it can't be told."""
    height, width = image.shape[:2]
    rows = image[height // 6], image[height // 2]
    at = [(2 * bit + 1) * width // 16 for bit in range(8)]
    bars, complements = ([int(row[x].mean() > 127) for x in at] for row in rows)
    if any(bar == complement for bar, complement in zip(bars, complements, strict=True)):
        return None
    return sum(bar << bit for bit, bar in enumerate(bars))


def numbers(images: Iterable[np.ndarray]) -> list[int | None]:
    return [number(image) for image in images]


def patches(image: np.ndarray) -> np.ndarray:
    """The four colours of an image: int [4, 3]."""
    height, width = image.shape[:2]
    return image[5 * height // 6, [(2 * i + 1) * width // 8 for i in range(4)]].astype(int)


def write(
    path: Path,
    count: int = 30,
    *,
    first: int = 0,
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    rate: int = 30,
    times: Iterable[int] | None = None,
    tick: Fraction = Fraction(1, 600),
    gop: int = 250,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    colour: tuple[int, int] = (6, 1),
    tagged: bool = False,
    container_format: str | None = None,
) -> Path:
    """Encode `count` frames from number `first` on, at a rate or at `times` in ticks; `colour`: (matrix, range), as H.273 has them."""
    with av.open(str(path), "w", format=container_format, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=QUALITY if options is None else options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stamps = None if times is None else list(times)
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = tick
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = colour
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + i, size))
            if pix_fmt != "rgb24":
                matrix = {1: "ITU709", 6: "ITU601"}[colour[0]]
                frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=colour[1])
            frame.colorspace, frame.color_range = colour if tagged else (2, 0)
            if stamps is None:
                frame.pts, frame.time_base = i, Fraction(1, rate)
            else:
                frame.pts, frame.time_base = stamps[i], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def places(path: Path) -> list[tuple[int, int]]:
    """Where a file has its packets, in decoding order: (first byte, bytes)."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def damage(path: Path, to: Path, packets: range, seed: int | None = 0, spared: int = 8) -> Path:
    """A copy in which some packets are overwritten, but for their first bytes: with noise, or zeros."""
    data = bytearray(path.read_bytes())
    for at, size in [places(path)[i] for i in packets]:
        noise = bytes(size - spared) if seed is None else np.random.default_rng(seed).bytes(size - spared)
        data[at + spared : at + size] = noise
    to.write_bytes(data)
    return to


def cut(path: Path, to: Path, packet: int, least: int = 0) -> Path:
    """A copy that ends in the middle of a packet, after so many bytes of it at least."""
    at, size = places(path)[packet]
    to.write_bytes(path.read_bytes()[: at + max(size // 2, least)])
    return to


def turn(path: Path, to: Path, a: int, b: int, c: int, d: int) -> Path:
    """A copy of an MP4 whose track is shown through the matrix that maps (x, y) to (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    for i, value in enumerate((a, b, 0, c, d, 0, 0, 0)):
        data[at + 4 * i : at + 4 * i + 4] = (value << 16 & 0xFFFFFFFF).to_bytes(4, "big")
    to.write_bytes(data)
    return to

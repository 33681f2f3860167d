"""Opens a video file, and nothing but a file; finds the stream that a player would show."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import av
from av.stream import Disposition

from adatp_kernels.video.error import VideoError, shown

# A scheme has two letters at least: one is a drive. Path("https://a") is "https:/a".
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")

# Decoders that draw text as pictures: to them, any text is a film.
_TEXT = {"ansi", "bintext", "xbin", "idf"}


def check_file(path: str | Path) -> Path:
    """The file that is meant, once it is known to be a regular one that can be read.

    Raises
    ------
    VideoError
        If it is anything else: missing, an address, a folder, a device, empty, not to be read.
    """
    if os.fspath(path) == "":
        raise VideoError("no video file named: the path is empty")
    name = shown(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        scheme = _ADDRESS.match(name)
        if scheme and scheme[1].lower() == "file":
            raise VideoError(f"an address, not a path: {name} (name the file by its path, without file://)") from None
        if scheme:
            raise VideoError(f"an address, not a file: {name} (only files are read: download it first)") from None
        raise VideoError(f"no such video file: {name}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise VideoError(f"no such video file: {name} ({_reason(error)})") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"a folder, not a video file: {name}")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"a device, pipe or socket, not a video file: {name}")
    if status.st_size == 0:
        raise VideoError(f"not a video: {name} is empty")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise VideoError(f"the video file cannot be opened: {name} ({_reason(error)})") from None
    return Path(path).absolute()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def open_file(path: Path) -> av.container.InputContainer:
    """The container of a file that `check_file` has passed."""
    return av.open(
        # Being absolute keeps "a:b.mp4" from being an address, the option "%03d.png" from being a pattern; and a
        # playlist leads to files beside it but never to the network.
        str(path),
        container_options={"protocol_whitelist": "file", "pattern_type": "none"},
        metadata_errors="replace",
    )


def find_stream(container: av.container.InputContainer, path: Path) -> int:
    """Index of the stream that a player would show: by disposition the default one, among those the largest.

    Raises
    ------
    VideoError
        If there is none: pictures that go with sound, and text, are no films.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        cover = ", only a cover picture" if container.streams.video else ""
        raise VideoError(f"not a video: {shown(path)} has no video stream{cover}")
    films = [stream for stream in videos if stream.codec_context is not None]
    if not films:
        raise VideoError(f"not a video that can be read: no decoder for the video stream of {shown(path)}")
    films = [stream for stream in films if stream.codec_context.name not in _TEXT]
    if not films:
        raise VideoError(f"not a video but text: {shown(path)}")
    best = max(
        films,
        key=lambda stream: (
            bool(stream.disposition & Disposition.default),
            stream.codec_context.width * stream.codec_context.height,
            -stream.index,
        ),
    )
    return best.index

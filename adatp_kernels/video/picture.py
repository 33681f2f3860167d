"""A decoded frame as an upright RGB picture of the size that is kept."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, Interpolation

_UNTAGGED = {0, 2, 3}  # H.273, table 4: RGB, which no YCbCr is; unspecified; reserved


@dataclass
class Canvas:
    """The frames that are kept, in memory that is asked for once; each is written where it belongs as it is decoded.

    All have the size of the first that is put: later ones of other sizes, in files whose pictures change size
    midway, are resized to it. They are turned as the first is, too: a damaged file holds any display matrix.

    Attributes
    ----------
    max_pixels : int or None
        Area that a frame may have: larger ones are made smaller with their aspect kept, smaller ones stay.
    frames : uint8 array [count, H, W, 3] or None
        None before the first is put.
    source_size : (int, int)
        Width and height of the first, upright, before it was made smaller.
    """

    max_pixels: int | None
    frames: np.ndarray | None = None
    source_size: tuple[int, int] = (0, 0)
    _turned: tuple[bool, bool, bool] = (False, False, False)

    def clear(self, count: int) -> None:
        """Make room for `count` frames, of a size that the next one gives."""
        if self.frames is not None and len(self.frames) != count:
            self.frames = None
        self.source_size = (0, 0)

    def put(self, place: int, count: int, frame: av.VideoFrame) -> None:
        """Write a frame as number `place` of `count`."""
        if self.source_size == (0, 0):
            self._turned = orientation(frame)
            swapped = self._turned[0]
            size = (frame.width, frame.height)
            self.source_size = size[::-1] if swapped else size
            width, height = fit(*self.source_size, self.max_pixels)
            if self.frames is None or self.frames.shape != (count, height, width, 3):
                self.frames = None  # the old go before the new come
                self.frames = np.empty((count, height, width, 3), np.uint8)
        assert self.frames is not None
        swapped, down, right = self._turned
        height, width = self.frames.shape[1:3]
        picture = to_rgb(frame, *((height, width) if swapped else (width, height)))
        if swapped:
            picture = picture.swapaxes(0, 1)
        self.frames[place] = picture[:: -1 if down else 1, :: -1 if right else 1]


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a frame becomes upright: (rows and columns swapped, then upside down, then mirrored).

    The display matrix maps a stored pixel (x, y) to (a x + c y, b x + d y) as shown; only quarter turns and
    mirroring are pictures of the same pixels, and other angles are rounded to those.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """The largest size of the same aspect whose area is not over `max_pixels`; never larger than it was."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    width, height = max(int(width * scale), 1), max(int(height * scale), 1)
    width = min(width, max(max_pixels // height, 1))  # of a line of pixels, the other side was rounded up
    return width, min(height, max_pixels // width)


def to_rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """The stored picture as uint8 [height, width, 3].

    YCbCr is converted as it is tagged, its range included; untagged it is BT.709 from 1280 pixels in width or 577 in
    height on and BT.601 below, as players have it. Samples of HDR transfer functions are not mapped to SDR.
    """
    matrix = None
    if int(frame.colorspace) in _UNTAGGED and not frame.format.is_rgb:
        matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    # Bicubic filters grow with the step, so that nothing aliases; at the same size they have nothing to do.
    same = (width, height) == (frame.width, frame.height)
    return frame.to_ndarray(
        format="rgb24",
        width=width,
        height=height,
        src_colorspace=matrix,
        interpolation=Interpolation.BILINEAR if same else Interpolation.BICUBIC,
    )

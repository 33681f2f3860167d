"""Draws frames as the decoder's layers saw them: kept cells as they are, pruned ones under a colour of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

WIDTH = 1280  # of the whole picture, unless a title needs more
HEIGHT = 540  # of a panel, if its frames can be made small enough
LARGEST, SMALLEST = 384, 60  # edges of a frame
MARGIN, GAP, LABEL, SWATCH = 20, 10, 18, 16
LINES, MOST = 4, 1000  # lines of the question, and letters of one of them
# Where the system has them: fonts with more letters than Pillow's own, which has those of English.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial.ttf", "PingFang.ttc", "msyh.ttc")
INK, FAINT, PAPER = (232, 234, 238), (160, 166, 178), (18, 20, 24)
PRUNED, STRIPES = (44, 49, 74), (92, 102, 144)
ABSENT, DOTS = (34, 37, 44), (128, 132, 140)
# One border colour per segment, in turn.
BORDERS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))


class Panel(NamedTuple):
    """What was left after a stage."""

    title: str
    kept: Sequence[np.ndarray]  # of each frame [rows, columns] of bool


def pictures_of(frames: Any) -> list[Image.Image]:
    """`frames` as pictures that are large enough to be drawn and no larger.

    Parameters
    ----------
    frames : uint8 array or tensor [n, H, W, 3], or a sequence of such arrays [H, W, 3] or of PIL images
        RGB.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(frames, (np.ndarray, Tensor)) and frames.ndim != 4:
        raise ValueError(f"frames: expected shape [n, H, W, 3], got {list(frames.shape)}")
    if not isinstance(frames, (np.ndarray, Tensor, Sequence)) or isinstance(frames, (str, bytes)):
        raise TypeError(
            f"frames: expected an array [n, H, W, 3] or a sequence of pictures, got {type(frames).__name__}"
        )
    pictures = []
    for number, frame in enumerate(frames):
        picture = _picture(number, frame)
        picture.thumbnail((2 * LARGEST, 2 * LARGEST))  # at once, as all of a film may be more than there is memory for
        pictures.append(picture)
    return pictures


def _picture(number: int, frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame.convert("RGB")  # a copy, if it is that already
    pixels = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else frame
    if not isinstance(pixels, np.ndarray):
        raise TypeError(
            f"frames: expected arrays, tensors or PIL images, got {type(frame).__name__} as number {number}"
        )
    if pixels.dtype != np.uint8:
        raise TypeError(f"frames: expected uint8 from 0 to 255, got {pixels.dtype} as number {number}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"frames: expected pictures of shape [H, W, 3], got {list(pixels.shape)} as number {number}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def draw(
    path: Path,
    pictures: Sequence[Image.Image],
    panels: Sequence[Panel],
    *,
    present: Sequence[np.ndarray],
    segments: Sequence[int],
    salient: Sequence[int],
    question: str | None,
    times: Sequence[float] | None,
) -> None:
    """Write a PNG with a panel for each of some stages.

    Parameters
    ----------
    path : Path
    pictures : sequence of PIL images
        One for each frame.
    panels : sequence of Panel
    present : sequence of bool arrays [rows, columns]
        Of each frame, which cells became tokens at all.
    segments : sequence of int
        Of each frame.
    salient : sequence of int
        Segments that are marked.
    question : str, optional
    times : sequence of float, optional
        Seconds of each frame.
    """
    title_font = ImageFont.load_default(size=17)
    drawn = _Frames(pictures, present, segments, salient, times)
    widest = max(title_font.getlength(panel.title) for panel in panels)
    panel_width = max(drawn.width, math.ceil(widest))
    panel_height = 30 + drawn.height
    across = max(1, min(len(panels), (WIDTH - 2 * MARGIN + 2 * GAP) // (panel_width + 2 * GAP)))
    down = math.ceil(len(panels) / across)
    inner = max(across * (panel_width + 2 * GAP) - 2 * GAP, WIDTH // 2)
    head = _Head(question, inner, absent=any(not cells.all() for cells in present), salient=bool(salient))
    image = Image.new("RGB", (inner + 2 * MARGIN, head.height + down * (panel_height + MARGIN) + MARGIN - GAP), PAPER)
    head.draw(image)
    canvas = ImageDraw.Draw(image)
    for number, panel in enumerate(panels):
        x = MARGIN + number % across * (panel_width + 2 * GAP)
        y = head.height + MARGIN - GAP + number // across * (panel_height + MARGIN)
        canvas.text((x, y), panel.title, fill=INK, font=title_font)
        drawn.draw(image, x, y + 30, panel.kept)
    about = PngImagePlugin.PngInfo()
    if question is not None:
        about.add_itxt("Question", _written(question))
    image.save(path, format="PNG", pnginfo=about)


class _Frames:
    """The frames of a panel, in rows, each as large as all of them leave room for, and in its own shape."""

    def __init__(
        self,
        pictures: Sequence[Image.Image],
        present: Sequence[np.ndarray],
        segments: Sequence[int],
        salient: Sequence[int],
        times: Sequence[float] | None,
    ) -> None:
        shapes = sorted(picture.height / picture.width for picture in pictures)
        self._box = _box(len(pictures), shapes[len(shapes) // 2])
        rows = math.ceil(len(pictures) / ((WIDTH - 2 * MARGIN + GAP) // (self._box[0] + GAP)))
        self._columns = math.ceil(len(pictures) / rows)
        self._thumbnails = [np.asarray(_fit(picture, self._box)) for picture in pictures]
        self._gone = [_gone(*one) for one in zip(self._thumbnails, present, strict=True)]
        self._segments, self._salient, self._times = segments, salient, times
        self.width = self._columns * (self._box[0] + GAP) - GAP
        self.height = math.ceil(len(pictures) / self._columns) * (self._box[1] + LABEL + GAP)

    def draw(self, image: Image.Image, left: int, top: int, kept: Sequence[np.ndarray]) -> None:
        """All of them, with what is `kept`."""
        canvas, font = ImageDraw.Draw(image), ImageFont.load_default(size=11)
        for number, thumbnail in enumerate(self._thumbnails):
            height, width = thumbnail.shape[:2]
            x = left + number % self._columns * (self._box[0] + GAP) + (self._box[0] - width) // 2
            y = top + number // self._columns * (self._box[1] + LABEL + GAP) + (self._box[1] - height)
            image.paste(_shown(thumbnail, self._gone[number], kept[number]), (x, y))
            segment = self._segments[number]
            colour = BORDERS[segment % len(BORDERS)]
            canvas.rectangle([x - 3, y - 3, x + width + 2, y + height + 2], outline=colour, width=3)
            below = y + height + 5
            when = f"#{number}" if self._times is None else _clock(self._times[number])
            canvas.text((x - 2, below), when, fill=FAINT, font=font)
            name = f"s{segment}"
            canvas.text((x + width + 2, below), name, fill=colour, font=font, anchor="ra")
            if segment in self._salient:
                _star(canvas, x + width - 7 - font.getlength(name), below + 6, 6, colour)


class _Head:
    """The question, and what the colours mean."""

    def __init__(self, question: str | None, width: int, *, absent: bool, salient: bool) -> None:
        words = "" if question is None else _written(question)
        self._font, self._small = _font_for(words, 20), ImageFont.load_default(size=13)
        self._lines = _wrapped(words, self._font, width)
        self._entries = [("kept", "kept"), ("pruned", "pruned")]
        self._entries += [("absent", "left out before the decoder")] if absent else []
        self._entries += [("border", "border: segment s0, s1, ...")]
        self._entries += [("star", "segment relevant to the text")] if salient else []
        # The entries stand beside each other where there is room.
        self._places, x, y = [], MARGIN, MARGIN + 27 * len(self._lines) + (4 if self._lines else 0)
        for kind, words in self._entries:
            entry = self._swatch_width(kind) + 8 + math.ceil(self._small.getlength(words))
            if x > MARGIN and x + entry > width + MARGIN:
                x, y = MARGIN, y + 24
            self._places.append((x, y))
            x += entry + 26
        self.height = y + SWATCH + 6

    def draw(self, image: Image.Image) -> None:
        """All of it, at the top."""
        canvas = ImageDraw.Draw(image)
        for number, line in enumerate(self._lines):
            canvas.text((MARGIN, MARGIN - 4 + 27 * number), line, fill=INK, font=self._font)
        for (kind, words), (x, y) in zip(self._entries, self._places, strict=True):
            width = self._swatch_width(kind)
            if kind == "border":
                for number, colour in enumerate(BORDERS):
                    canvas.rectangle([x + 10 * number, y, x + 10 * number + 7, y + SWATCH - 1], fill=colour)
            elif kind == "star":
                _star(canvas, x + SWATCH / 2, y + SWATCH / 2, 8, INK)
            else:
                image.paste(_swatch(kind), (x, y))
            canvas.text((x + width + 8, y + SWATCH / 2), words, fill=FAINT, font=self._small, anchor="lm")

    @staticmethod
    def _swatch_width(kind: str) -> int:
        return 10 * len(BORDERS) - 3 if kind == "border" else SWATCH if kind == "star" else 2 * SWATCH


def _box(count: int, shape: float) -> tuple[int, int]:
    """Width and height of so many frames of a `shape`, height over width, that a panel has room for."""
    for columns in range(1, count + 1):
        width = min((WIDTH - 2 * MARGIN + GAP) // columns - GAP, LARGEST, int(LARGEST / shape))
        following = (WIDTH - 2 * MARGIN + GAP) // (columns + 1) - GAP
        if math.ceil(count / columns) * (width * shape + LABEL + GAP) <= HEIGHT or following < SMALLEST:
            break
    width = max(width, 1)
    return width, max(1, round(width * shape))


def _fit(picture: Image.Image, box: tuple[int, int]) -> Image.Image:
    """The picture in its own shape, as large as the box has room for."""
    scale = min(box[0] / picture.width, box[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if scale >= 1:
        return picture.resize(size, Image.Resampling.BICUBIC)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _gone(pixels: np.ndarray, present: np.ndarray) -> np.ndarray:
    """What a frame's pixels [H, W, 3] look like where it was pruned: no colour that a picture has over an area."""
    height, width = pixels.shape[:2]
    grey = pixels.mean(-1, keepdims=True, dtype=np.float32)
    down, along = np.ogrid[:height, :width]
    striped, dotted = (down + along) % 6 == 0, (down % 4 == 0) & (along % 4 == 0)
    pruned = np.where(striped[..., None], STRIPES, 0.16 * grey + 0.84 * np.array(PRUNED, np.float32))
    absent = np.where(dotted[..., None], DOTS, ABSENT)
    return np.where(_to_pixels(present, height, width), pruned, absent).astype(np.uint8)


def _shown(pixels: np.ndarray, gone: np.ndarray, kept: np.ndarray) -> Image.Image:
    """A frame as it is where it was `kept`."""
    return Image.fromarray(np.where(_to_pixels(kept, *pixels.shape[:2]), pixels, gone))


def _to_pixels(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """A grid of cells [rows, columns] blown up to [height, width, 1]."""
    rows, columns = cells.shape
    return cells[np.arange(height) * rows // height][:, np.arange(width) * columns // width, None]


def _swatch(kind: str) -> Image.Image:
    """A piece of a picture that fades from dark to light, as kept, pruned or no token."""
    fade = np.linspace((24, 44, 40), (150, 214, 176), 2 * SWATCH).astype(np.uint8)
    pixels = np.broadcast_to(fade, (SWATCH, 2 * SWATCH, 3))
    return _shown(pixels, _gone(pixels, np.array([[kind != "absent"]])), np.array([[kind == "kept"]]))


def _star(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    points = [
        (x + reach * math.sin(math.pi * k / 5), y - reach * math.cos(math.pi * k / 5))
        for k, reach in enumerate([radius, 0.42 * radius] * 5)
    ]
    canvas.polygon(points, fill=colour)


def _clock(seconds: float) -> str:
    """Minutes, seconds and tenths."""
    minutes, tenths = divmod(round(10 * seconds), 600)
    return f"{minutes}:{tenths // 10:02}.{tenths % 10}"


def _written(text: str) -> str:
    """One line of the letters that can be written, whatever came from a command line."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def _font_for(text: str, size: int) -> Any:
    """Pillow's own font, unless another one at hand has more of the letters of `text`."""
    fonts: list[Any] = [ImageFont.load_default(size=size)]
    matplotlib = find_spec("matplotlib")
    own = (
        [Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"]
        if matplotlib and matplotlib.origin
        else []
    )
    for place in (*map(str, own), *FONTS):
        if not _missing(fonts[-1], text):
            break
        with suppress(OSError):
            fonts.append(ImageFont.truetype(place, size))
    return min(fonts, key=lambda font: _missing(font, text))


def _missing(font: Any, text: str) -> int:
    """How many of its letters the font draws as what it draws for none."""
    nothing = bytes(font.getmask("\uffff"))
    return sum(bytes(font.getmask(letter)) == nothing for letter in set(text) if not letter.isspace())


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines no longer than `width`; at most `LINES`, the last of which tells if there are more."""
    lines: list[str] = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".lstrip()
        if font.getlength(line[:MOST]) <= width and len(line) <= MOST:
            lines[-1] = line
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
            if len(lines) > LINES:
                last = lines[LINES - 1]
                while last and font.getlength(last + " …") > width:
                    last = last[:-1]
                return [*lines[: LINES - 1], last + " …"]
    return lines if lines[0] else []

"""Renders a short H.264 clip of several shots, for when the user has no video at hand."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

SIZE = 224
FPS = 12
# Background, then the colour and the number of corners of what moves across it (0: a disc).
SHOTS = (
    ((34, 52, 92), (240, 196, 60), 0),
    ((196, 214, 190), (170, 40, 44), 4),
    ((230, 150, 90), (40, 90, 70), 3),
    ((60, 20, 60), (120, 220, 230), 5),
    ((240, 240, 236), (60, 70, 200), 0),
    ((20, 90, 70), (250, 120, 150), 4),
    ((150, 40, 40), (245, 240, 210), 3),
    ((120, 150, 215), (90, 50, 20), 6),
    ((250, 215, 120), (110, 30, 110), 5),
    ((28, 28, 30), (235, 90, 40), 3),
    ((205, 170, 210), (20, 70, 60), 0),
    ((90, 110, 60), (240, 240, 250), 4),
)


def render_clip(path: Path, *, seconds_per_shot: float = 1.0, seed: int = 0) -> None:
    """Write an MP4 of twelve shots, each with its own background and one moving shape.

    Parameters
    ----------
    path : Path
        File to write.
    seconds_per_shot : float
    seed : int
        Decides the texture of the backgrounds and the camera's jitter.
    """
    rng = np.random.default_rng(seed)
    frames_per_shot = max(2, round(seconds_per_shot * FPS))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number, (background, colour, corners) in enumerate(SHOTS):
            canvas = _background(background, number, rng)
            for step in range(frames_per_shot):
                picture = _draw(canvas, colour, corners, step / frames_per_shot, rng)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _background(colour: tuple[int, int, int], shot: int, rng: np.random.Generator) -> np.ndarray:
    """A coloured field with stripes whose direction depends on the shot, and some grain."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = shot * 0.7
    stripes = 14 * np.sin(2 * math.pi * (3 + shot) * (x * math.cos(angle) + y * math.sin(angle)))
    grain = rng.normal(0, 4, (SIZE, SIZE))
    return np.array(colour)[None, None] + (stripes + grain)[..., None]


def _draw(
    canvas: np.ndarray, colour: tuple[int, int, int], corners: int, progress: float, rng: np.random.Generator
) -> np.ndarray:
    """The shape at its place on a canvas that the camera shakes a little."""
    shaken = np.roll(canvas, tuple(rng.integers(-1, 2, 2)), axis=(0, 1))
    image = Image.fromarray(shaken.clip(0, 255).astype(np.uint8))
    centre = (SIZE * (0.2 + 0.6 * progress), SIZE * (0.5 + 0.25 * math.sin(4 * progress)))
    radius = SIZE * 0.13
    draw = ImageDraw.Draw(image)
    if corners:
        draw.regular_polygon((*centre, radius), corners, rotation=90 * progress, fill=colour)
    else:
        draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=colour)
    return np.asarray(image)

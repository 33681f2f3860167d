"""Synthetic clips of several shots: what is in them, and how every frame of them looks at any resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
PATTERNS = ("plain", "striped", "barred", "slanted", "checkered", "dotted", "gridded", "speckled")
PLACES = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")

SIDE = 3  # cells along each edge of a frame
CELL = 16  # pixels along each edge of a cell, at scale 1
SIZE = SIDE * CELL
MOST_BLOBS = 3  # in a shot
SHAKE = 1  # how many pixels the camera moves at most, at scale 1

_RGB = np.array(
    [(214, 40, 40), (40, 168, 64), (48, 74, 214), (236, 208, 48), (158, 60, 182), (60, 204, 214)], np.float32
)


@dataclass(frozen=True)
class Thing:
    """A coloured shape in one cell: indices into `COLORS`, `SHAPES`, `PLACES`, and how exactly it is drawn."""

    color: int
    shape: int
    place: int
    offset: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Shot:
    """A run of frames before one background.

    Attributes
    ----------
    pattern : int
        Index into `PATTERNS`.
    tones : float array [2, 3]
        The two colours of the pattern.
    thing : Thing or None
        What most questions ask about.
    blobs : tuple of Thing
        One to three grey discs without sharp edges; their `color` is a grey level.
    shakes : int array [frames, 2]
        Where the camera stands in each frame, in pixels at scale 1, from 0 to ``2 · SHAKE``.
    seed : int
        Of the speckles and the grain.
    """

    pattern: int
    tones: np.ndarray
    thing: Thing | None
    blobs: tuple[Thing, ...]
    shakes: np.ndarray
    seed: int


@dataclass(frozen=True)
class Clip:
    """A sequence of shots."""

    shots: tuple[Shot, ...]

    @property
    def starts(self) -> np.ndarray:
        """First frame of each shot, and the number of frames at the end, [shots + 1]."""
        return np.cumsum([0, *(len(shot.shakes) for shot in self.shots)])

    @property
    def shot_of_frame(self) -> np.ndarray:
        """Which shot each frame belongs to, [frames]."""
        return np.repeat(np.arange(len(self.shots)), np.diff(self.starts))


def draw_clip(rng: np.random.Generator, num_shots: int = 8, num_frames: int | None = None) -> Clip:
    """A random clip.

    Every shot has a pattern of its own; three of four shots show a thing. No two things share a colour or a shape, so any
    of the two says which is meant. The distribution doesn't change when colours, shapes, patterns or places are renamed,
    so a question that names some of them says nothing about the others.

    Parameters
    ----------
    rng : numpy Generator
    num_shots : int
        From 1 to 8.
    num_frames : int, optional
        From `num_shots` to three times that; by default twice that. Shots last one to three frames.
    """
    frames = _lengths(rng, num_shots, 2 * num_shots if num_frames is None else num_frames)
    shown = rng.permutation(num_shots) < -(-3 * num_shots // 4)
    kinds = zip(rng.permutation(len(COLORS)).tolist(), rng.permutation(len(SHAPES)).tolist(), strict=True)
    things = [next(kinds) if show else None for show in shown]
    patterns = rng.permutation(len(PATTERNS))[:num_shots]
    return Clip(tuple(_shot(rng, *parts) for parts in zip(patterns, things, frames, strict=True)))


def render(clip: Clip, scale: int = 1) -> np.ndarray:
    """Every frame of a clip, uint8 [frames, 48 · scale, 48 · scale, 3]."""
    return np.concatenate([_render_shot(shot, scale) for shot in clip.shots])


def _lengths(rng: np.random.Generator, num_shots: int, num_frames: int) -> np.ndarray:
    while True:
        lengths = rng.integers(1, 4, num_shots)
        if lengths.sum() == num_frames:
            return lengths


def _shot(rng: np.random.Generator, pattern: int, kind: tuple[int, int] | None, frames: int) -> Shot:
    base = rng.uniform(85, 190) + rng.uniform(-22, 22, 3)
    contrast = rng.uniform(38, 60) * rng.choice((-1, 1))
    places = rng.permutation(SIDE * SIDE).tolist()
    draw = lambda color, shape: Thing(  # noqa: E731 - where and how large, for things and blobs alike
        color, shape, places.pop(), tuple(rng.uniform(-1, 1, 2)), rng.uniform(5.2, 6.0)
    )
    return Shot(
        pattern=int(pattern),
        tones=np.stack([base, base + contrast]).astype(np.float32),
        thing=draw(*kind) if kind else None,
        blobs=tuple(draw(int(rng.choice((35, 225))), 0) for _ in range(rng.integers(1, MOST_BLOBS + 1))),
        shakes=rng.integers(0, 2 * SHAKE + 1, (frames, 2)),
        seed=int(rng.integers(2**31)),
    )


def _render_shot(shot: Shot, scale: int) -> np.ndarray:
    rng = np.random.default_rng(shot.seed)
    margin = SHAKE * scale
    axis = (np.arange(SIZE * scale + 2 * margin, dtype=np.float32) + 0.5) / scale - SHAKE
    y, x = axis[:, None], axis[None, :]
    mix = _pattern(PATTERNS[shot.pattern], x, y, rng)[..., None]
    canvas = shot.tones[0] * (1 - mix) + shot.tones[1] * mix
    for thing in shot.blobs:
        canvas = _paint(canvas, thing, np.full(3, thing.color, np.float32), x, y, scale, softness=2.0)
    if shot.thing:
        canvas = _paint(canvas, shot.thing, _RGB[shot.thing.color], x, y, scale, softness=0.5)
    size = SIZE * scale
    frames = np.stack([canvas[dy * scale :, dx * scale :][:size, :size] for dy, dx in shot.shakes])
    grain = rng.standard_normal(frames.shape[:3], dtype=np.float32)
    return (frames + 4 * grain[..., None]).clip(0, 255).astype(np.uint8)


def _pattern(name: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much of the second tone each pixel has, in [0, 1]; periods are a third of a cell or so."""
    phase_x, phase_y = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    across = lambda period: np.sin(2 * np.pi * x / period + phase_x) + 0 * y  # noqa: E731
    down = lambda period: np.sin(2 * np.pi * y / period + phase_y) + 0 * x  # noqa: E731
    if name == "plain":
        wave = np.full((y.size, x.size), -1.0, np.float32)
    elif name == "striped":
        wave = down(5.3)
    elif name == "barred":
        wave = across(5.3)
    elif name == "slanted":
        wave = np.sin(2 * np.pi * (x + y) / 7.5 + phase_x)
    elif name == "checkered":
        wave = 2 * across(10.6) * down(10.6)
    elif name == "dotted":
        wave = across(5.3) + down(5.3) - 0.9
    elif name == "gridded":
        wave = np.maximum(across(8.0), down(8.0)) - 0.75
    else:
        blocks = rng.integers(0, 2, (SIZE, SIZE)).astype(np.float32) * 2 - 1
        wave = blocks[((y + SHAKE) / 2.7).astype(int), ((x + SHAKE) / 2.7).astype(int)]
    return (0.5 + 1.5 * wave).clip(0, 1)


def _paint(
    canvas: np.ndarray, thing: Thing, rgb: np.ndarray, x: np.ndarray, y: np.ndarray, scale: int, softness: float
) -> np.ndarray:
    """`canvas` with a shape on it; its edge is `softness` pixels of scale 1 wide."""
    row, column = divmod(thing.place, SIDE)
    dx = x - (column + 0.5) * CELL - thing.offset[0]
    dy = y - (row + 0.5) * CELL - thing.offset[1]
    inside = -_distance(SHAPES[thing.shape], dx, dy, thing.radius)
    cover = (inside / softness + 0.5).clip(0, 1)[..., None]
    return canvas * (1 - cover) + rgb * cover


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far each point lies outside the shape (negative: inside), about in pixels."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.85 * radius
    if shape == "diamond":
        return (abs(x) + abs(y) - 1.15 * radius) / np.sqrt(2)
    if shape == "triangle":
        return np.maximum(y - 0.75 * radius, 0.894 * abs(x) - 0.447 * (y + 1.05 * radius))
    if shape == "cross":
        long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
        return np.maximum(long - radius, short - 0.36 * radius)
    return abs(np.hypot(x, y) - 0.75 * radius) - 0.28 * radius

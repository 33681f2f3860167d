"""Draws the sampled frames with the cells that survive a stage lit up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from adatp_kernels.integrations.transformers.report import Report

THUMBNAIL = 112
GAP = 6
HEADER = 34
COLUMNS = 8
INK = (226, 226, 226)
PAPER = (18, 20, 24)
# One border colour per segment, in turn.
BORDERS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0))


def draw_survivors(path: Path, frames: np.ndarray, report: Report) -> None:
    """Write a PNG: one panel for the first, the middle and the last stage that dropped tokens.

    Pruned cells are dark; the border's colour tells the segment.

    Parameters
    ----------
    path : Path
    frames : uint8 array [num_frames, H, W, 3]
    report : Report
        Of the prompt made from these frames.
    """
    stages = report.survivors
    chosen = sorted({0, len(stages) // 2, len(stages) - 1}) if stages else []
    thumbnails = [np.asarray(Image.fromarray(frame).resize((THUMBNAIL, THUMBNAIL))) for frame in frames]
    panels = [_panel(thumbnails, report, *stages[number]) for number in chosen]
    if not panels:
        everything = report.layout.index
        panels = [_panel(thumbnails, report, -1, everything)]
    Image.fromarray(np.concatenate(panels)).save(path)


def _panel(thumbnails: list[np.ndarray], report: Report, layer: int, kept: Tensor) -> np.ndarray:
    alive = _alive(report, kept)
    columns = min(COLUMNS, len(thumbnails))
    rows = math.ceil(len(thumbnails) / columns)
    step = THUMBNAIL + GAP
    image = Image.new("RGB", (columns * step + GAP, HEADER + rows * step + GAP), PAPER)
    draw = ImageDraw.Draw(image)
    when = f"after layer {layer}" if layer >= 0 else "nothing pruned"
    title = f"{when}: {int(alive.sum())} of {alive.size} visual tokens"
    draw.text((GAP, GAP), title, fill=INK, font=ImageFont.load_default(size=20))
    for number, thumbnail in enumerate(thumbnails):
        x, y = GAP + number % columns * step, HEADER + number // columns * step
        lit = np.where(_to_pixels(alive[number])[..., None], thumbnail, thumbnail // 7)
        image.paste(Image.fromarray(lit.astype(np.uint8)), (x, y))
        colour = BORDERS[report.segments[number] % len(BORDERS)]
        draw.rectangle([x - 2, y - 2, x + THUMBNAIL + 1, y + THUMBNAIL + 1], outline=colour, width=2)
    return np.asarray(image)


def _alive(report: Report, kept: Tensor) -> np.ndarray:
    """Which cells are among the `kept` tokens, [num_frames, rows, columns] of a frame's square grid."""
    layout = report.layout
    side = math.ceil(math.sqrt(int(layout.position.max()) + 1))
    alive = np.zeros((layout.num_frames, side * side), dtype=bool)
    survives = np.isin(layout.index.numpy(), kept.numpy())
    alive[layout.frame.numpy()[survives], layout.position.numpy()[survives]] = True
    return alive.reshape(-1, side, side)


def _to_pixels(cells: np.ndarray) -> np.ndarray:
    """A grid of cells blown up to the thumbnail's size."""
    place = np.arange(THUMBNAIL) * len(cells) // THUMBNAIL
    return cells[place][:, place]

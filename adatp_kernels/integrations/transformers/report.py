"""What a pruned prompt cost, as planned and as it ran: `Acceleration.report()`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.errors import integer, number
from adatp_kernels.integrations.transformers.visuals import Grid, Visuals
from adatp_kernels.layout import VisualLayout
from adatp_kernels.plan import PruningPlan, flops_ratio
from adatp_kernels.state import PruningState

PHASES = ("score", "select", "compact")


class PhaseClock:
    """Sums the time of the three phases of all stages, without waiting for the device.

    On CUDA the times are events on the stream, read only by `seconds`.
    """

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], float | torch.cuda.Event] = _event if device.type == "cuda" else time.perf_counter
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []

    def mark(self, phase: str | None) -> None:
        """A phase of a stage was launched; None: a stage begins."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds per phase, all stages together. On CUDA this waits for the device."""
        total = dict.fromkeys(PHASES, 0.0)
        for (_, before), (phase, now) in zip(self._marks, self._marks[1:], strict=False):
            if phase is None:
                continue
            if isinstance(now, float):
                total[phase] += now - float(before)  # type: ignore[arg-type]
            else:
                now.synchronize()
                total[phase] += before.elapsed_time(now) / 1e3  # type: ignore[union-attr]
        return total


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass(eq=False, slots=True)  # not frozen, as it is made for every prompt
class PromptRecord:
    """What is remembered of a batch of prompts that ran; nothing of the size of its pixels or its cache.

    Attributes
    ----------
    state : PruningState
        As the last stage left it.
    visuals : tuple of Visuals
        Of each row.
    masked : tuple of int
        Of each row, how many tokens behind its padding are masked, and not visual.
    entered : tuple of int
        Tokens that entered each layer, text and padding included.
    survivors : tuple of (int, LongTensor [B, n])
    clock : PhaseClock
    backends : dict of str to str
        As in `Report`.
    """

    state: PruningState
    visuals: tuple[Visuals, ...]
    masked: tuple[int, ...]
    entered: tuple[int, ...]
    survivors: tuple[tuple[int, Tensor], ...]
    clock: PhaseClock
    backends: dict[str, str]

    def report(self, row: int, *, pictures_per_frame: int, hidden_size: int, key_width: int, mlp_width: int) -> Report:
        """The report of one row, for a decoder of these widths. On CUDA this waits for the device."""
        if not 0 <= integer("row", row, low=0) < len(self.visuals):
            raise ValueError(f"row: expected one of the batch's {len(self.visuals)} rows, from 0, got {row}")
        layout, state = self.visuals[row].layout, self.state
        prompt = row if len(state.plans) > 1 else 0  # of copies there is one plan
        plan, segments, salient = state.plans[prompt], state.segments[prompt], state.salient_segments[prompt]
        survivors = tuple((layer, kept[row].cpu()) for layer, kept in self.survivors)
        actual = []
        for entering, entered in enumerate(self.entered):
            left = [kept for layer, kept in survivors if layer < entering]
            # Text, and padding that was not dropped yet.
            others = (
                len(left[-1]) - int(torch.isin(left[-1], layout.index).sum()) if left else self.entered[0] - len(layout)
            )
            actual.append(entered - others)
        return Report(
            plan=plan,
            layout=layout,
            segments=tuple(segments.tolist()),
            salient=salient,
            text_tokens=state.text_tokens[prompt] - self.masked[row],
            asking_start=state.asking_start[prompt],
            planned_tokens=plan.tokens_per_layer,
            actual_tokens=tuple(actual),
            planned_flops_ratio=plan.flops_ratio,
            actual_flops_ratio=flops_ratio(actual, hidden_size=hidden_size, key_width=key_width, mlp_width=mlp_width),
            survivors=survivors,
            seconds=self.clock.seconds(),
            backends=self.backends,
            grids=self.visuals[row].frame_grids,
            pictures_per_frame=pictures_per_frame,
        )


@dataclass(frozen=True, eq=False)
class Report:
    """The last video prompt that ran under `accelerate`, or one row of its batch; prints as a table.

    Attributes
    ----------
    plan : PruningPlan
    layout : VisualLayout
    segments : tuple of int
        Segment of each frame.
    salient : tuple of int
        Segments found relevant to the text.
    text_tokens : int
        Tokens of the prompt that are neither visual, pruned or not, nor masked.
    asking_start : int
        The column behind the last visual token, pruned or not: the text from there on asks.
    planned_tokens, actual_tokens : tuple of int
        Visual tokens that entered each layer.
    planned_flops_ratio, actual_flops_ratio : float
        FLOPs of the visual tokens as a share of the unpruned ones.
    survivors : tuple of (int, LongTensor [n])
        For every stage that dropped tokens: its layer, and the columns of the row that were left after it,
        text and padding included.
    seconds : dict of str to float
        Time in score, select and compact, all stages together.
    backends : dict of str to str
        The backend of each operation.
    grids : tuple of (int, int) or None
        Rows and columns of the grid of cells that each frame is; None where it is no grid that the model's family knows.
    pictures_per_frame : int
        How many pictures of the video became one frame.
    """

    plan: PruningPlan
    layout: VisualLayout
    segments: tuple[int, ...]
    salient: tuple[int, ...]
    text_tokens: int
    asking_start: int
    planned_tokens: tuple[int, ...]
    actual_tokens: tuple[int, ...]
    planned_flops_ratio: float
    actual_flops_ratio: float
    survivors: tuple[tuple[int, Tensor], ...]
    seconds: dict[str, float]
    backends: dict[str, str]
    grids: tuple[Grid | None, ...]
    pictures_per_frame: int

    def cells(self) -> tuple[tuple[int, Tensor], ...]:
        """The cells that were kept, stage by stage.

        Returns
        -------
        tuple of (int, LongTensor [n, 3])
            For every stage that dropped tokens, as in `survivors`: its layer, and frame, row and column, from zero, of the visual
            tokens that were left after it, in the order of the sequence. Frames are those of tokens, of which each is
            `pictures_per_frame` pictures of the video. Empty if nothing was pruned; then every token of `layout` is left.

        Raises
        ------
        ValueError
            If the grid of a frame is not known, as that of a family whose ``frame_grids`` does not tell it.

        Examples
        --------
        ::

            for layer, cells in run.report().cells():
                for frame, row, column in cells.tolist():
                    ...
        """
        if None in self.grids:
            frame = self.grids.index(None)
            raise ValueError(
                f"grids: expected rows and columns of every frame, but those of frame {frame} are not known, which has "
                f"{int((self.layout.frame == frame).sum())} tokens: let the family's frame_grids (of images, image_grids) tell them"
            )
        return tuple((layer, self._places(kept)) for layer, kept in self.survivors)

    def _places(self, kept: Tensor) -> Tensor:
        """Frame, row and column of the visual tokens among the columns `kept`; −1 and the cell's number in a frame without a grid."""
        layout = self.layout
        alive = torch.isin(layout.index, kept)
        frame, cell = layout.frame[alive], layout.position[alive]
        columns = torch.tensor([0 if grid is None else grid[1] for grid in self.grids], device="cpu")[frame]
        known = columns > 0
        columns = columns.clamp(min=1)
        return torch.stack(
            (frame, torch.where(known, cell // columns, -1), torch.where(known, cell % columns, cell)), 1
        )

    def draw(
        self, frames: Any, path: str | Path, *, question: str | None = None, seconds: Sequence[float] | None = None
    ) -> None:
        """Write a picture: the frames, and what was left of them after the first, the middle and the last stage.

        What was pruned is grey-blue and striped; borders tell the segments. Needs Pillow and NumPy.

        Parameters
        ----------
        frames : uint8 array or tensor [n, H, W, 3], or a sequence of such arrays [H, W, 3] or of PIL images
            The pictures that the model was given, RGB, of any sizes, in the order of the prompt: one for each frame, or
            `pictures_per_frame` of which the first is drawn. A frame's cells are laid over all of its picture, so where a
            processor crops (LLaVA-NeXT-Video's does, to the middle), give what it leaves.
        path : str or Path
            Ends with ``.png``.
        question : str, optional
            Stands above the picture. Letters that no font at hand has are drawn as boxes.
        seconds : sequence of float, optional
            When each picture is shown, in seconds from the video's beginning; stands below it.

        Raises
        ------
        TypeError, ValueError
            If the frames are no such pictures, or not as many as the report's, or the path or the times cannot be used, or a
            frame's grid is not known; see `cells`.
        ModuleNotFoundError
            Without Pillow or NumPy.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"path: expected a name that ends with .png, got {path}")
        try:
            from adatp_kernels.integrations.transformers import picture
        except ModuleNotFoundError as error:
            if error.name not in ("PIL", "numpy"):
                raise
            raise ModuleNotFoundError(
                f"draw: needs Pillow and NumPy, but {error.name} is missing: pip install 'adatp-kernels[demo]'",
                name=error.name,
            ) from error
        stages = self.cells()
        chosen = sorted({0, len(stages) // 2, len(stages) - 1}) if stages else []
        titles = [f"after layer {stages[stage][0]}" for stage in chosen] or ["nothing was pruned"]
        everything = self._places(self.layout.index)
        left = [stages[stage][1] for stage in chosen] or [everything]
        given = picture.pictures_of(frames)
        step = self._pictures_each(len(given))
        if seconds is not None:
            seconds = [number(f"seconds[{place}]", second, low=0.0) for place, second in enumerate(seconds)]
            if len(seconds) != len(given):
                raise ValueError(f"seconds: expected one for each of the {len(given)} frames, got {len(seconds)}")
        picture.draw(
            path,
            given[::step],
            [
                picture.Panel(f"{title}: {len(cells)} of {len(everything)} visual tokens", self._masks(cells))
                for title, cells in zip(titles, left, strict=True)
            ],
            present=self._masks(everything),
            segments=self.segments,
            salient=self.salient,
            question=question,
            times=None if seconds is None else seconds[::step],
        )

    def _pictures_each(self, count: int) -> int:
        """How many of `count` pictures are one frame; an error if they cannot be those of the report's frames."""
        frames, each = self.layout.num_frames, self.pictures_per_frame
        if count == frames:
            return 1
        if -(-count // each) == frames:  # a processor repeats the last one where they come out odd
            return each
        also = f", or {frames * each - each + 1} to {frames * each}, as {each} become one" if each > 1 else ""
        raise ValueError(f"frames: expected the {frames} that the report is of{also}, got {count}")

    def _masks(self, cells: Tensor) -> list[Any]:
        """Of each frame, where `cells` [n, 3] are: arrays [rows, columns] of bool."""
        masks = [torch.zeros(grid, dtype=torch.bool, device="cpu") for grid in self.grids if grid is not None]
        for own, mask in enumerate(masks):
            _, row, column = cells[cells[:, 0] == own].unbind(1)
            mask[row, column] = True
        return [mask.numpy() for mask in masks]

    def _left_out(self) -> list[list[int]]:
        """Frame, row and column of what something before the decoder left out of the frames whose grids are known."""
        there = set(zip(self.layout.frame.tolist(), self.layout.position.tolist(), strict=True))
        return [
            [frame, *divmod(cell, grid[1])]
            for frame, grid in enumerate(self.grids)
            if grid is not None
            for cell in range(grid[0] * grid[1])
            if (frame, cell) not in there
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of the report in standard types: dicts, lists, strings, finite numbers, booleans and None.

        Returns
        -------
        dict
            Always with the same keys in the same order. ``kept`` has what `cells` has, and ``left_out`` the cells that never
            became tokens, as where a processor drops what did not change. Where a frame's entry in ``grids`` is None, so is the
            row of its cells, and the column is the cell's number.
        """
        plan = self.plan
        return {
            "frames": self.layout.num_frames,
            "pictures_per_frame": self.pictures_per_frame,
            "visual_tokens": len(self.layout),
            "text_tokens": self.text_tokens,
            "segments": list(self.segments),
            "salient_segments": list(self.salient),
            "plan": {
                "target_flops": plan.target_flops,
                "alpha": plan.alpha,
                "capped": plan.capped,
                "shared": plan.shared,
                "stages": [
                    {"layer": stage.layer, "total": stage.total, "budgets": list(stage.budgets)}
                    for stage in plan.stages
                ],
            },
            "tokens_per_layer": {"planned": list(self.planned_tokens), "actual": list(self.actual_tokens)},
            "flops_ratio": {"planned": self.planned_flops_ratio, "actual": self.actual_flops_ratio},
            "grids": [None if grid is None else list(grid) for grid in self.grids],
            "left_out": self._left_out(),
            "kept": [
                {
                    "layer": layer,
                    "cells": [
                        [frame, None if row < 0 else row, column] for frame, row, column in self._places(kept).tolist()
                    ],
                }
                for layer, kept in self.survivors
            ],
            "seconds": dict(self.seconds),
            "backends": dict(sorted(self.backends.items())),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as JSON.

        Parameters
        ----------
        indent : int, optional
            Spaces by which nested parts are set in; all in one line by default.
        """
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        rows = [("layer", "planned", "actual")]
        rows += [
            (str(i), str(p), str(a))
            for i, (p, a) in enumerate(zip(self.planned_tokens, self.actual_tokens, strict=True))
        ]
        table = "\n".join(f"{layer:>6} {planned:>9} {actual:>9}" for layer, planned, actual in rows)
        times = ", ".join(f"{phase} {1e3 * seconds:.1f} ms" for phase, seconds in self.seconds.items())
        salient = f", salient: {list(self.salient)}" if self.salient else ""
        return (
            f"{len(self.segments)} frames in {self.segments[-1] + 1} segments{salient}; {self.text_tokens} text tokens\n"
            f"{self.plan.describe()}\n"
            f"visual tokens entering each layer\n{table}\n"
            f"FLOPs of the visual tokens: planned {self.planned_flops_ratio:.4f}, actual {self.actual_flops_ratio:.4f}\n"
            f"time in all stages: {times}"
        )

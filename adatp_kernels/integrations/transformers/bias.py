"""bias_report: where the most attended visual tokens lie, in every layer, before debiasing and after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.allocation import allocate
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import integer, number
from adatp_kernels.integrations.transformers.observe import Observed, observe, prompts_of
from adatp_kernels.ops import select
from adatp_kernels.prior import load_prior


@dataclass(frozen=True, eq=False)
class BiasReport:
    """Shares of the most attended visual tokens, as the paper measures the bias; prints as a table.

    "Before" are the top tokens of all; "after" are as many as debiasing lets through: the best of each spatial position
    of a segment, out of every segment its part.

    Attributes
    ----------
    share : float
        Which part of the visual tokens is called the most attended.
    layers : tuple of int
    frames_before, frames_after : Tensor [num_layers, num_frames]
        Share of them that lies in each frame.
    positions_before, positions_after : Tensor [num_layers, positions]
        Share of them that lies on each position, over all frames.
    """

    share: float
    layers: tuple[int, ...]
    frames_before: Tensor
    frames_after: Tensor
    positions_before: Tensor
    positions_after: Tensor

    def last_frames(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Share in the last `count` frames (an eighth of them by default), per layer, before and after.

        Raises
        ------
        TypeError, ValueError
            If `count` is not an integer from 1 to the number of frames.
        """
        frames = self.frames_before.shape[1]
        count = max(1, frames // 8) if count is None else integer("count", count, low=1)
        if count > frames:
            raise ValueError(f"count: expected 1 to {frames}, the number of frames, got {count}")
        return self.frames_before[:, -count:].sum(1), self.frames_after[:, -count:].sum(1)

    def fullest_position(self) -> tuple[Tensor, Tensor]:
        """The fullest position's share over the mean position's, per layer, before and after."""
        positions = self.positions_before.shape[1]
        return self.positions_before.amax(1) * positions, self.positions_after.amax(1) * positions

    def __str__(self) -> str:
        ends = max(1, self.frames_before.shape[1] // 8)
        lines = [
            f"top {100 * self.share:g} % of the visual tokens by text-to-visual attention, before → after debiasing",
            f"{'layer':>5}   {f'in the last {ends} of {self.frames_before.shape[1]} frames':<30}  fullest position / mean",
        ]
        (late, late_after), (full, full_after) = self.last_frames(), self.fullest_position()
        for row, layer in enumerate(self.layers):
            lines.append(
                f"{layer:>5}   {100 * late[row]:5.1f} % → {100 * late_after[row]:5.1f} %               "
                f"{full[row]:5.2f} × → {full_after[row]:5.2f} ×"
            )
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Write a picture: shares by frame and by position, layer by layer. Needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 7), layout="constrained")
        panels = figure.subplots(2, 2)
        for row, (before, after, what) in enumerate(
            [
                (self.frames_before, self.frames_after, "frame"),
                (self.positions_before, self.positions_after, "position"),
            ]
        ):
            # In multiples of what an even spread would give.
            scale = before.shape[1]
            most = float(max(before.max(), after.max())) * scale
            for column, (values, when) in enumerate([(before, "before"), (after, "after")]):
                panel = panels[row, column]
                image = panel.imshow(
                    (values * scale).numpy(), aspect="auto", vmin=0, vmax=most, interpolation="nearest"
                )
                panel.set(xlabel=what, ylabel="layer", title=f"by {what}, {when} debiasing")
                panel.set_yticks(range(len(self.layers)), self.layers)
            figure.colorbar(image, ax=panels[row], label="share ÷ even share")
        figure.suptitle(f"top {100 * self.share:g} % of the visual tokens by text-to-visual attention")
        figure.savefig(path, dpi=110)


def bias_report(
    model: nn.Module,
    inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    config: AdaTPConfig | None = None,
    *,
    share: float = 0.1,
) -> BiasReport:
    """Measure how text-to-visual attention is biased to frames and positions, in every layer of the unpruned model.

    Parameters
    ----------
    model : transformers model
        As for `accelerate`; it is left as it was.
    inputs : dict, or iterable of dict
        What the model's forward takes, of one prompt with a video; or several of these, over which shares are averaged.
    config : AdaTPConfig, optional
        How to debias; the method as published by default.
    share : float
        Part of the visual tokens that counts as the most attended, in ``(0, 1]``; the paper's by default.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If a prompt cannot be pruned or comes in a batch, or if the prompts' frames differ in number or in positions.
    """
    number("share", share, low=0.0, high=1.0, open_low=True)
    config = AdaTPConfig() if config is None else config
    reports = [report_of(observe(model, prompt, config), config, share) for prompt in prompts_of("inputs", inputs)]
    if not reports:
        raise ValueError("inputs: expected at least one prompt, got none")
    shapes = {(report.frames_before.shape[1], report.positions_before.shape[1]) for report in reports}
    if len(shapes) > 1:
        raise ValueError(
            f"inputs: expected prompts of equally many frames and positions, got (frames, positions) {sorted(shapes)}"
        )
    means = {
        field: torch.stack([getattr(report, field) for report in reports]).mean(0)
        for field in ("frames_before", "frames_after", "positions_before", "positions_after")
    }
    return BiasReport(share=share, layers=reports[0].layers, **means)


def report_of(observed: Observed, config: AdaTPConfig, share: float) -> BiasReport:
    """The report of one prompt."""
    layout, segment = observed.layout, observed.segments[observed.layout.frame]
    total = max(1, math.floor(share * len(layout) + 0.5))
    sizes = segment.bincount()
    span = int(layout.position.max()) + 1
    distinct = torch.unique(segment * span + layout.position) // span
    caps = distinct.bincount(minlength=len(sizes)) if config.spatial_dedup == "strict" else sizes
    budgets = torch.tensor(allocate(total, sizes.tolist(), caps.tolist()), device="cpu")
    rows = len(observed.layers)
    factor = None
    if config.prior is not None:
        factor = load_prior(config.prior)[layout.frame, layout.position].expand(rows, -1)
    whole = torch.zeros(rows, len(layout), dtype=torch.int64, device="cpu")
    before = select(observed.scores, whole, whole, torch.tensor([total], device="cpu"), dedup="off")
    after = select(
        observed.scores,
        segment.expand(rows, -1),
        layout.position.expand(rows, -1),
        budgets,
        dedup=config.spatial_dedup,
        soft_weight=config.soft_weight,
        prior=factor,
    )
    shares = {
        f"{name}_{when}": torch.stack([of[row].bincount(minlength=size).float() / chosen.shape[1] for row in chosen])
        for when, chosen in (("before", before), ("after", after))
        for name, of, size in (("frames", layout.frame, layout.num_frames), ("positions", layout.position, span))
    }
    return BiasReport(share=share, layers=observed.layers, **shares)

"""What a pruned prompt cost, as planned and as it ran: `Acceleration.report()`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adatp_kernels.errors import integer
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
    layouts : tuple of VisualLayout
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
    layouts: tuple[VisualLayout, ...]
    masked: tuple[int, ...]
    entered: tuple[int, ...]
    survivors: tuple[tuple[int, Tensor], ...]
    clock: PhaseClock
    backends: dict[str, str]

    def report(self, row: int, *, hidden_size: int, key_width: int, mlp_width: int) -> Report:
        """The report of one row, for a decoder of these widths. On CUDA this waits for the device."""
        if not 0 <= integer("row", row, low=0) < len(self.layouts):
            raise ValueError(f"row: expected one of the batch's {len(self.layouts)} rows, from 0, got {row}")
        layout, state = self.layouts[row], self.state
        prompt = row if len(state.plans) > 1 else 0  # of copies there is one plan
        plan, segments, salient = state.plans[prompt], state.segments[prompt], state.salient_segments[prompt]
        survivors = tuple((layer, kept[row].cpu()) for layer, kept in self.survivors)
        actual = []
        for number, entered in enumerate(self.entered):
            left = [kept for layer, kept in survivors if layer < number]
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

"""The plan: for every stage and segment an integer budget, decided on the host before the decoder runs.

Nothing here depends on attention, so no tensor shape in the decoder depends on data
(``algorithm.md``, step 3 and "The plan").
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adatp_kernels.allocation import Allocator
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import as_tensor, integer, number
from adatp_kernels.layout import VisualLayout
from adatp_kernels.schedule import RecentSchedules, layer_flops
from adatp_kernels.segments import cells_per_segment, check_frames, checked_numbers, segment_bounds


@dataclass(frozen=True)
class Stage:
    """One pruning point: it scores in decoder layer `layer` and drops before layer ``layer + 1``.

    Attributes
    ----------
    layer : int
        Decoder layer, from zero.
    budgets : tuple of int
        Visual tokens that each segment keeps.
    total : int
        Their sum, the visual tokens that enter layer ``layer + 1``.
    """

    layer: int
    budgets: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class PruningPlan:
    """How many visual tokens survive each stage; host integers only.

    Attributes
    ----------
    stages : tuple of Stage
        In layer order.
    tokens_per_layer : tuple of int
        Visual tokens that enter each decoder layer.
    flops_ratio : float
        FLOPs of the visual tokens under this plan, as a share of the unpruned ones.
    target_flops : float or None
        What was asked for; None with an explicit schedule.
    alpha : float or None
        The solved parameter of the schedule; None with an explicit schedule.
    capped : bool
        Whether the segments' caps (spatial deduplication) keep some stage below its schedule. Then
        `flops_ratio` may lie below `target_flops`: there is nothing left to spend it on.
    shared : bool
        Whether another prompt of the batch keeps some stage below what this one would keep alone.
    """

    stages: tuple[Stage, ...]
    tokens_per_layer: tuple[int, ...]
    flops_ratio: float
    target_flops: float | None
    alpha: float | None
    capped: bool
    shared: bool = False

    def describe(self) -> str:
        """The plan in one line."""
        kept = f"{self.tokens_per_layer[0]} → {self.tokens_per_layer[-1]} visual tokens in {len(self.stages)} stages"
        target = "explicit schedule" if self.target_flops is None else f"target {self.target_flops:.3f}"
        caps = "; spatial deduplication caps the segments, so less is kept than scheduled" if self.capped else ""
        shared = "; other prompts of the batch keep fewer, so this one does" if self.shared else ""
        return f"{kept}, {self.flops_ratio:.3f} of the FLOPs ({target}{caps}{shared})"


def visual_flops(tokens: float, *, hidden_size: int, key_width: int, mlp_width: int) -> float:
    """FLOPs that visual tokens cost in one decoder layer, as multiply-accumulates.

    ``2·n·D·(h_kv·d) + 2·n·D² + 2·n²·D + 3·n·D·D'`` (``algorithm.md``, "The plan").

    Parameters
    ----------
    tokens : float
        Number of visual tokens n, at least 0.
    hidden_size : int
        D.
    key_width : int
        ``h_kv·d``: key-value heads times head dimension.
    mlp_width : int
        D', the width of the gated MLP.

    Raises
    ------
    TypeError, ValueError
        If an argument is no such number.
    """
    return layer_flops(
        number("tokens", tokens, low=0.0),
        integer("hidden_size", hidden_size, low=1),
        integer("key_width", key_width, low=1),
        integer("mlp_width", mlp_width, low=1),
    )


def flops_ratio(tokens_per_layer: Sequence[float], *, hidden_size: int, key_width: int, mlp_width: int) -> float:
    """FLOPs of `tokens_per_layer` visual tokens as a share of what layer 0's number would cost in all layers."""
    cost = [
        visual_flops(n, hidden_size=hidden_size, key_width=key_width, mlp_width=mlp_width) for n in tokens_per_layer
    ]
    return sum(cost) / (cost[0] * len(cost))


def make_plan(
    config: AdaTPConfig,
    layout: VisualLayout,
    segments: Tensor,
    salient: Tensor | None = None,
    *,
    num_layers: int,
    hidden_size: int,
    key_width: int,
    mlp_width: int,
) -> PruningPlan:
    """Decide how many tokens every segment keeps at every stage.

    Parameters
    ----------
    config : AdaTPConfig
    layout : VisualLayout
        The prompt's visual tokens.
    segments : LongTensor [num_frames]
        Segment of each frame, as `segment_frames` returns it. On a GPU this is the one place that
        waits for the device, before the decoder runs.
    salient : BoolTensor [num_segments], optional
        Segments the text asks about; none by default.
    num_layers, hidden_size, key_width, mlp_width : int
        The decoder; see `visual_flops`.

    Raises
    ------
    TypeError, ValueError
        For malformed arguments, and if `config.target_flops` is below what the layers before the
        first stage cost alone.
    """
    decoder = {"hidden_size": hidden_size, "key_width": key_width, "mlp_width": mlp_width}
    return make_plans(config, [layout], [segments], [salient], surplus=[0], num_layers=num_layers, **decoder)[0]


def make_plans(
    config: AdaTPConfig,
    layouts: Sequence[VisualLayout],
    segments: Sequence[Tensor],
    salient: Sequence[Tensor | None],
    *,
    surplus: Sequence[int],
    num_layers: int,
    hidden_size: int,
    key_width: int,
    mlp_width: int,
) -> tuple[PruningPlan, ...]:
    """Plans of prompts that run in one dense batch: the smallest of their totals is everyone's, at every stage.

    Parameters
    ----------
    config, num_layers, hidden_size, key_width, mlp_width
        As for `make_plan`.
    layouts, segments, salient : sequence
        Of each prompt, what `make_plan` takes.
    surplus : sequence of int
        What each prompt keeps above that total; see `Batch`.

    Raises
    ------
    TypeError, ValueError
        As for `make_plan`, and if a prompt cannot keep its surplus.
    """
    if not isinstance(config, AdaTPConfig):
        raise TypeError(f"config: expected an AdaTPConfig, got {type(config).__name__}")
    decoder = {"hidden_size": hidden_size, "key_width": key_width, "mlp_width": mlp_width}
    visual_flops(1, **decoder)  # checks the three before any work
    frames, bounds, flags = [], [], []
    for layout, of_frames, of_segments in zip(layouts, segments, salient, strict=True):
        if not isinstance(layout, VisualLayout):
            raise TypeError(f"layout: expected a VisualLayout, got {type(layout).__name__}")
        ids, numbers = checked_numbers(of_frames)
        check_frames(layout, ids)
        frames.append(ids)
        bounds.append(segment_bounds(layout, numbers))
        flags.append(_flags(of_segments, numbers[-1] + 1))
    return plans_of_checked(
        config, layouts, frames, bounds, flags,
        surplus=surplus, schedules=RecentSchedules(), num_layers=num_layers, **decoder,
    )  # fmt: skip


def plans_of_checked(
    config: AdaTPConfig,
    layouts: Sequence[VisualLayout],
    frames: Sequence[Tensor],
    bounds: Sequence[Sequence[int]],
    flags: Sequence[Sequence[bool] | None],
    *,
    surplus: Sequence[int],
    schedules: RecentSchedules,
    num_layers: int,
    **decoder: int,
) -> tuple[PruningPlan, ...]:
    """`make_plans` of arguments that passed its checks; `bounds` are those of the segments, `flags` say which are salient."""
    layers = config.stage_layers(num_layers)
    # Python's integers: NumPy's, which the checks let pass, would overflow.
    num_layers, decoder = int(num_layers), {name: int(width) for name, width in decoder.items()}
    rows = zip(layouts, frames, bounds, flags, strict=True)
    drafts = [_Draft(config, *row, schedules, layers, num_layers, decoder) for row in rows]
    room = min(sum(draft.caps) - extra for draft, extra in zip(drafts, surplus, strict=True))
    totals = [min(room, *stage) for stage in zip(*(draft.totals for draft in drafts), strict=True)]
    if any(surplus) and room < 1:
        row = min(range(len(drafts)), key=lambda r: sum(drafts[r].caps) - surplus[r])
        raise ValueError(
            f"padding: beside the longest text of the batch row {row} has to keep {surplus[row]} visual tokens more than the others, of "
            f"{sum(drafts[row].caps)} it may; add at least {surplus[row]} columns of padding on the left of all rows"
        )
    return tuple(draft.plan([total + extra for total in totals]) for draft, extra in zip(drafts, surplus, strict=True))


class _Draft:
    """What one prompt would keep if it were alone, and its plan once the totals are settled."""

    def __init__(
        self,
        config: AdaTPConfig,
        layout: VisualLayout,
        frames: Tensor,
        bounds: Sequence[int],
        flags: Sequence[bool] | None,
        schedules: RecentSchedules,
        layers: tuple[int, ...],
        num_layers: int,
        decoder: dict[str, int],
    ) -> None:
        sizes = [*map(operator.sub, bounds[1:], bounds)]
        self.target, self.layers = config.target_flops, layers
        self.caps = cells_per_segment(layout, frames) if config.spatial_dedup == "strict" else sizes
        boosts = [1.0] * len(sizes) if flags is None else [config.salient_boost if flag else 1.0 for flag in flags]
        self.allocator = Allocator([*map(operator.mul, sizes, boosts)])
        self.schedule = schedules.schedule(config, bounds[-1], sum(self.caps), layers, num_layers, decoder)
        self.alpha, self.wanted, self.totals = self.schedule.planned

    def plan(self, totals: Sequence[int]) -> PruningPlan:
        """The plan that keeps `totals`."""
        budgets = map(tuple, self.allocator.shares(totals, self.caps))
        return PruningPlan(
            stages=tuple(map(_stage, self.layers, budgets, totals)),
            tokens_per_layer=self.schedule.tokens_per_layer(totals),
            flops_ratio=self.schedule.flops_ratio(totals),
            target_flops=self.target,
            alpha=self.alpha,
            capped=any(map(operator.gt, self.wanted, self.totals)),
            shared=any(map(operator.gt, self.totals, totals)),
        )


def _stage(layer: int, budgets: tuple[int, ...], total: int) -> Stage:
    stage = object.__new__(Stage)  # a frozen dataclass' own way takes some times as long
    vars(stage).update(layer=layer, budgets=budgets, total=total)
    return stage


def _flags(salient: Tensor | None, num_segments: int) -> list[bool] | None:
    if salient is None:
        return None
    flags = as_tensor("salient", salient)
    if flags.dtype != torch.bool:
        raise TypeError(f"salient: expected booleans, got {flags.dtype}")
    if list(flags.shape) != [num_segments]:
        raise ValueError(f"salient: expected one entry per segment, shape [{num_segments}], got {list(flags.shape)}")
    return flags.tolist()

"""From a prompt's layout and segments to the state a decoder starts with: all the host decides, before the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.batch import Batch
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import as_tensor, host_integers, integer
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import checks
from adatp_kernels.plan import PruningPlan, plans_of_checked
from adatp_kernels.recent import RecentStates
from adatp_kernels.schedule import RecentSchedules
from adatp_kernels.segments import check_frames, checked_numbers, salient_segments, segment_bounds, segment_frames
from adatp_kernels.state import PruningState, Step


def begin(
    config: AdaTPConfig,
    decoder: dict[str, int],
    usual_prior: Tensor | None,
    recent: RecentStates,
    *,
    layout: VisualLayout | Sequence[VisualLayout],
    length: int,
    features: Tensor | Sequence[Tensor] | None,
    segments: Tensor | Sequence[Tensor] | None,
    relevance: Tensor | Sequence[Tensor | None] | None,
    prior: Tensor | Sequence[Tensor] | None,
    padding: int | Sequence[int] | None,
    images: Tensor | Sequence[Tensor | None] | None,
    batch_size: int,
    device: torch.device | str,
) -> PruningState:
    """`AdaTPPruner.begin`, of a pruner that is made of the first four."""
    alone = isinstance(layout, VisualLayout)
    given = {"features": features, "segments": segments, "relevance": relevance, "prior": prior}
    rows = _rows_of(alone, layout, **given, padding=padding, images=images)
    layouts: list[VisualLayout] = rows["layout"]
    if (features is None) == (segments is None):
        raise ValueError("features, segments: expected exactly one of the two")
    if segments is None:
        # The host waits here for the features' device. What comes out needs no check.
        frames = [segment_frames(row, config.segment_threshold).cpu() for row in rows["features"]]
        numbers = [row.tolist() for row in frames]
    else:
        checked = [checked_numbers(row) for row in rows["segments"]]
        frames, numbers = [ids for ids, _ in checked], [listed for _, listed in checked]
    length = integer("length", length, low=1)
    batch_size = integer("batch_size", batch_size, low=1)
    if batch_size != 1 and not alone:
        raise ValueError(f"batch_size: expected 1 where every row has a layout of its own, got {batch_size}")
    paddings = tuple(integer(f"padding[{row}]", count or 0, low=0) for row, count in enumerate(rows["padding"]))
    whole = tuple(map(_whole_images, rows["images"], layouts, paddings, [length] * len(layouts)))
    scores = [None if row is None else as_tensor("relevance", row).cpu() for row in rows["relevance"]]
    if prior is None:
        rows["prior"] = [] if usual_prior is None else [usual_prior] * len(layouts)
    priors = [_factors(row) for row in rows["prior"]]

    # All that a state depends on. The dtype of what is not checked yet is part of it: true would equal 1.
    key = (
        config,
        tuple(decoder.values()),
        length,
        batch_size,
        paddings,
        whole,
        numbers,
        [None if row is None else (row.dtype, row.tolist()) for row in scores],
        len(priors),
        _place(device),
    )
    state = recent.find(key, _inputs(layouts, priors))
    if state is None:
        # Whatever mode the caller is in, the state may be used in another; and it shares no memory with his tensors.
        with torch.inference_mode(False):
            layouts, frames = [_own(row) for row in layouts], [row.clone() for row in frames]
            priors = [row.clone() for row in priors]
            batch = Batch(tuple(layouts), length, paddings, whole)
            state = _state(
                config, decoder, recent.schedules, batch, frames, numbers, scores, priors, batch_size, device
            )
            recent.add(key, _inputs(layouts, priors), state)
    return state


def _state(
    config: AdaTPConfig,
    decoder: dict[str, int],
    schedules: RecentSchedules,
    batch: Batch,
    frames: Sequence[Tensor],
    numbers: Sequence[Sequence[int]],
    relevance: Sequence[Tensor | None],
    priors: Sequence[Tensor],
    copies: int,
    device: torch.device | str,
) -> PruningState:
    """The first state of `batch`; `numbers` are the `frames` as lists."""
    if config.score == "attention" and 0 in batch.asking_tails:
        raise ValueError(
            f"length: no text token follows the last visual token (number {batch.length - 1}), so there is no row to score with"
        )
    flags: list[list[bool] | None] = [
        None if row is None else salient_segments(of, row).tolist() for of, row in zip(frames, relevance, strict=True)
    ]
    for layout, of in zip(batch.layouts, frames, strict=True):
        check_frames(layout, of)
    bounds = [segment_bounds(layout, row) for layout, row in zip(batch.layouts, numbers, strict=True)]
    plans = plans_of_checked(
        config, batch.layouts, frames, bounds, flags, surplus=batch.surplus, schedules=schedules, **decoder
    )
    rows, prior, scores = copies * len(frames), None, None
    if priors:
        factors = [_prior_row(row, of, batch.length) for row, of in zip(priors, batch.layouts, strict=True)]
        prior = torch.stack(factors).to(device).expand(rows, -1)
    if config.score == "random":
        # Drawn on the host, so that every device sees the same numbers, and here, so that no stage waits.
        generator = torch.Generator().manual_seed(config.seed)
        scores = torch.rand(rows, batch.length, generator=generator, dtype=torch.float32, device="cpu").to(device)
    asking, key_range = batch.asking(), (batch.first_column, batch.length - min(batch.tails))
    tokens = batch.table(frames).to(device)
    if copies > 1:
        tokens = tokens.expand(-1, rows, -1)
    _, segment_ids, positions = tokens[..., slice(*key_range)].unbind()
    return PruningState(
        plans=plans,
        segments=tuple(frames),
        salient_segments=tuple(() if row is None else tuple(s for s, flag in enumerate(row) if flag) for row in flags),
        length=batch.length,
        key_range=key_range,
        num_positions=batch.num_positions,
        _batch=batch,
        _asking=None if asking is None else asking.to(device),
        _remaining=_steps(config.spatial_dedup, batch, bounds, plans, copies, device),
        _tokens=tokens if config.spatial_dedup == "soft" else tokens[:2],
        _prior=prior,
        _scores=scores,
        _columns=(segment_ids, positions),
    )


def _steps(
    dedup: str,
    batch: Batch,
    bounds: Sequence[Sequence[int]],
    plans: Sequence[PruningPlan],
    copies: int,
    device: torch.device | str,
) -> tuple[Step, ...]:
    """The stages that drop something; all their budgets go to the device in one copy."""
    lengths = [batch.length_with(stage.total - batch.surplus[0]) for stage in plans[0].stages]
    running = [i for i, left in enumerate(lengths) if left < ([batch.length, *lengths])[i]]
    if not running:
        return ()
    limits = batch.limits(bounds, [[plan.stages[i].budgets for i in running] for plan in plans])
    longest = (limits[..., 2] - limits[..., 1]).amax((1, 2)).tolist()
    on_device = limits.to(device)
    if copies > 1:
        on_device = on_device.expand(-1, copies, -1, -1)
    budgets, ranges = on_device[..., 0].unbind(), on_device[..., 1:].unbind()
    least, left, steps = min(batch.tails), batch.first_column_left, []
    for order, i in enumerate(running):
        step = object.__new__(Step)  # a frozen dataclass' own way takes some times as long
        vars(step).update(
            stage=plans[0].stages[i], budgets=budgets[order], segment_ranges=ranges[order], longest_segment=longest[order],
            dedup="off" if dedup == "strict" and order else dedup, length=lengths[i], key_range=(left, lengths[i] - least),
        )  # fmt: skip
        steps.append(step)
    return tuple(steps)


def _rows_of(alone: bool, layout: Any, **arguments: Any) -> dict[str, list[Any]]:
    """Every argument as a list with an entry per row, and None for what is absent."""
    layouts = [layout] if alone else layout
    if not isinstance(layouts, Sequence) or not layouts or not all(isinstance(row, VisualLayout) for row in layouts):
        raise TypeError(f"layout: expected a VisualLayout, or one for each row, got {type(layout).__name__}")
    rows = {"layout": list(layouts)}
    for name, value in arguments.items():
        if value is None:
            rows[name] = [None] * len(layouts)
        elif alone:
            rows[name] = [value]
        elif not isinstance(value, Sequence) or len(value) != len(layouts):
            raise ValueError(f"{name}: expected a sequence with an entry for each of the {len(layouts)} rows")
        else:
            rows[name] = list(value)
    return rows


def _whole_images(
    images: Tensor | Sequence[int] | None, layout: VisualLayout, padding: int, length: int
) -> tuple[int, int]:
    """How many columns `images` has, and the one behind its last."""
    places = None if images is None else host_integers("images", images, "[n]")
    if places is None or not len(places):
        return 0, 0
    first, last = int(places[0]), int(places[-1])
    if bool((places.diff() <= 0).any()) or first < padding or last >= length:
        raise ValueError(
            f"images: expected strictly ascending places of the prompt, from {padding} to {length - 1}, got them from {first} to {last}"
        )
    visual = layout.index
    if bool((visual[torch.searchsorted(visual, places).clamp(max=len(visual) - 1)] == places).any()):
        raise ValueError("images: expected tokens that are left whole, got some of the layout's")
    return len(places), last + 1


def _own(layout: VisualLayout) -> VisualLayout:
    """A copy with tensors of its own."""
    copy = object.__new__(VisualLayout)  # no need to check it again
    for name, values in vars(layout).items():
        object.__setattr__(copy, name, values.clone())
    return copy


def _inputs(layouts: Sequence[VisualLayout], priors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a state depends on; priors as bits, for which NaN equals itself and −0 isn't 0."""
    tensors = [tensor for row in layouts for tensor in (row.index, row.frame, row.position)]
    return tensors + [row.view(torch.int32) for row in priors]


def _factors(prior: Tensor) -> Tensor:
    """`prior` in float32 on the host."""
    checks.tensor("prior", prior, checks.FLOATS)
    return prior.detach().to("cpu", torch.float32)


def _prior_row(prior: Tensor, layout: VisualLayout, length: int) -> Tensor:
    """The factor of every column, 1 where it is text."""
    cells = int(layout.position.max()) + 1
    if prior.dim() != 2 or prior.shape[0] != layout.num_frames or prior.shape[1] < cells:
        raise ValueError(
            f"prior: expected shape [num_frames, positions] = [{layout.num_frames}, at least {cells}], got {list(prior.shape)}"
        )
    row = torch.ones(length, dtype=torch.float32, device="cpu")
    row[layout.index] = prior[layout.frame, layout.position]
    return row


def _place(device: torch.device | str) -> tuple[torch.device, int | None]:
    """The device itself, and the stream whose memory a tensor made there now belongs to."""
    where = torch.device(device)
    if where.index is None and where.type != "cpu":
        where = torch.empty(0, device=where).device  # "cuda" is whichever is the current one
    return where, torch.cuda.current_stream(where).cuda_stream if where.type == "cuda" else None

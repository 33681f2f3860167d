"""The native backend on CUDA tensors: scores, a selection, or a whole stage, each in one cooperative launch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adatp_kernels.config import DEDUPLICATION
from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Pruning, Scoring, Selection, has_unusual, moved_shape
from adatp_kernels.ops.native.build import Library, find_or_build
from adatp_kernels.ops.native.recipe import CUDA
from adatp_kernels.ops.positions import too_sparse, with_positions

# The device that these operators are for; tests without a GPU have them compiled for CPU tensors.
_DEVICE = "cuda"
_HEAD_DIMS = (64, 96, 128)
_MOST_DIMS = 5
_LARGEST = 2**31 - 1


@functools.cache
def load() -> Library | str:
    """The library, loaded, or why there is none."""
    try:
        library = find_or_build(CUDA)
        torch.ops.load_library(str(library.path))
    except Exception as error:  # whatever is wrong with it, another backend runs
        return f"its CUDA library cannot be loaded: {error}"
    return library


def refuses(operation: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> str | None:
    """Why the library cannot run an operation on `tensors`, which are on a GPU; None if it can."""
    if tensors[0].device.type != _DEVICE:
        return f"it runs on CPU and CUDA tensors, not on {tensors[0].device}"
    if operation not in ("column_sums", "select", "prune"):
        return f"on a GPU it runs column_sums, select and prune, not {operation}; Triton does"
    library = load()
    if isinstance(library, str):
        return library
    if has_unusual(*tensors, *moved):
        return "it takes plain strided tensors"
    if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in (*tensors, *moved)]):
        return "it has no gradient; call it under torch.no_grad()"
    scores = tensors[0] if operation == "select" else tensors[2] if len(tensors) > 2 else None
    if scores is not None and scores.dtype != torch.float32:
        return f"on a GPU scores must be float32, not {scores.dtype}"
    if scores is None and (reason := _refuses_attention(*tensors[:2])):
        return reason
    return _refuses_moved(moved) if operation == "prune" else None


def _refuses_attention(query: Tensor, key: Tensor) -> str | None:
    if max(query.numel(), key.numel()) > _LARGEST:
        return f"query and key may have at most {_LARGEST} elements each"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"on a GPU it scores float16 and bfloat16, not {query.dtype}; Triton does"
    if query.shape[-1] not in _HEAD_DIMS:
        return f"on a GPU the head dim must be one of {_HEAD_DIMS}, not {query.shape[-1]}"
    for name, tensor in (("query", query), ("key", key)):
        if tensor.stride(-1) != 1 or tensor.data_ptr() % 16 or any(stride % 8 for stride in tensor.stride()[:-1]):
            return f"on a GPU the rows of {name} must lie in one piece, and begin at multiples of 16 bytes"
    return None


def _refuses_moved(moved: Sequence[Tensor]) -> str | None:
    most = max((tensor.dim() for tensor in moved), default=0)
    return None if most <= _MOST_DIMS else f"on a GPU tensors may have at most {_MOST_DIMS} dimensions, not {most}"


def _on_its_device(operation: Callable) -> Callable:
    """Launch where the tensors are, not on the current device."""

    @functools.wraps(operation)
    def run(first: Tensor | Scoring | Pruning, *arguments: object, **options: object) -> object:
        if _DEVICE != "cuda" or first.device.index == torch.cuda.current_device():
            return operation(first, *arguments, **options)
        with torch.cuda.device(first.device):
            return operation(first, *arguments, **options)

    return run


@_on_its_device
def column_sums(scoring: Scoring) -> Tensor:
    """As `functional.column_sums`."""
    key, (first, last) = scoring.key, scoring.key_range
    scores = torch.empty(key.shape[0], last - first, dtype=torch.float32, device=key.device)
    lse = None if scoring.lse is None else scoring.lse.float()
    start = min(scoring.query_start, key.shape[2])  # beyond, it says no more, and might not fit 32 bits
    torch.ops.adatp_cuda.column_sums(
        scoring.query, key, lse, scoring.key_mask, scoring.query_mask, scores, start, first, scoring.scale
    )
    return scores


@_on_its_device
def select(scores: Tensor, selection: Selection) -> Tensor:
    """As `functional.select`."""
    selection, num_positions = with_positions(selection)
    if too_sparse(selection.budgets, selection.dedup, num_positions):
        return reference.select(scores, selection)
    kept = torch.empty(len(scores), selection.num_selected, dtype=torch.int64, device=scores.device)
    _run(None, selection, scores, kept, 0, (), (), ())
    return kept


@_on_its_device
def prune(pruning: Pruning) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`. The phases are one launch, so a clock that `on_phase` drives finds all time in the last."""
    scoring, tensors, dims, on_phase = pruning.scoring, pruning.tensors, pruning.dims, pruning.on_phase
    selection, num_positions = with_positions(pruning.selection)
    if too_sparse(selection.budgets, selection.dedup, num_positions):
        return reference.prune(pruning)
    on_phase("score")
    on_phase("select")
    (batch, columns), (first, length) = selection.segments.shape, pruning.sequence
    survivors = length - columns + selection.num_selected
    kept = torch.empty(batch, survivors, dtype=torch.int64, device=scoring.device)
    targets = [
        torch.empty(moved_shape(tensor.shape, pair, *kept.shape), dtype=tensor.dtype, device=tensor.device)
        for tensor, pair in zip(tensors, dims, strict=True)
    ]
    sources = [tensor.resolve_conj().resolve_neg() for tensor in tensors]
    _run(
        None if pruning.scores is not None else scoring, selection, pruning.scores, kept, first, sources, targets, dims
    )
    on_phase("compact")
    return kept, tuple(targets)


def _run(
    scoring: Scoring | None,
    selection: Selection,
    scores: Tensor | None,
    kept: Tensor,
    first: int,
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    dims: Sequence[tuple[int, int]],
) -> None:
    moves = [
        (source, target, batch, token, source.element_size())
        for source, target, (batch, token) in zip(sources, targets, dims, strict=True)
        if target.numel()
    ]
    if scoring is None:
        attention: tuple = (None,) * 5
        start, first_key, scale = 0, 0, 1.0
    else:
        lse = None if scoring.lse is None else scoring.lse.float()
        attention = (scoring.query, scoring.key, lse, scoring.key_mask, scoring.query_mask)
        start = min(scoring.query_start, scoring.key.shape[2])
        first_key, scale = scoring.key_range[0], scoring.scale
    prior = None if selection.prior is None else selection.prior.float()
    torch.ops.adatp_cuda.stage(
        *attention, scores, selection.segments, selection.positions, selection.budgets, prior, kept,
        *([list(column) for column in zip(*moves, strict=True)] or [[]] * 5),
        start, first_key, scale, first, selection.num_selected, selection.num_positions,
        DEDUPLICATION.index(selection.dedup), selection.soft_weight,
    )  # fmt: skip

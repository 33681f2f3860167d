"""The native backend on CPU tensors: its operations, and which tensors it refuses."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from adatp_kernels.config import DEDUPLICATION
from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import Pruning, Scoring, Selection, has_unusual
from adatp_kernels.ops.native.build import Library, find_or_build
from adatp_kernels.ops.native.recipe import CPU, BuildError

# Sets of instructions, as csrc/include/adatp/common.h numbers them. The best that the CPU has is used, at most this.
INSTRUCTIONS = ("portable", "avx2", "avx512", "avx512_bf16")
_limit = len(INSTRUCTIONS) - 1


def _load() -> Library:
    library = find_or_build(CPU)
    try:
        torch.ops.load_library(str(library.path))
    except OSError:
        library = find_or_build(CPU, anew=True)
        torch.ops.load_library(str(library.path))
    return library


try:
    library = _load()
except Exception as error:  # whatever is wrong with it, the reference runs, and the report says what
    raise ImportError(str(error) if isinstance(error, (BuildError, OSError)) else repr(error)) from error
_ops = torch.ops.adatp_cpu
_column_sums, _select, _gather = _ops.column_sums.default, _ops.select.default, _ops.gather.default
DETAILS = f"{library.origin}; this CPU runs {INSTRUCTIONS[_ops.best_isa()]}"


def refuses(operation: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> str | None:
    """Why the library cannot run an operation on `tensors`, which are on a CPU; None if it can."""
    if operation not in ("select", "gather") and tensors[0].dtype == torch.float64:
        return "it computes in float32, not in float64"
    if has_unusual(*tensors, *moved):
        return "it takes plain strided tensors"
    if operation != "select" and torch.is_grad_enabled() and any([t.requires_grad for t in (*tensors, *moved)]):
        return "it has no gradient; call it under torch.no_grad()"
    return None


def row_lse(query: Tensor, key: Tensor, *, query_start: int, scale: float, key_mask: Tensor | None) -> Tensor:
    """As `functional.row_lse`."""
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    _ops.row_lse(query, key, key_mask, lse, min(query_start, key.shape[2]), scale, _limit)
    return lse


def column_sums(scoring: Scoring) -> Tensor:
    """As `functional.column_sums`."""
    key, (first, last), lse = scoring.key, scoring.key_range, scoring.lse
    start = min(scoring.query_start, key.shape[2])
    return _column_sums(
        scoring.query, key, None if lse is None else lse.float(), scoring.key_mask, scoring.query_mask, start, first, last,
        scoring.scale, _limit,
    )  # fmt: skip


column_sums_varlen = functools.partial(reference.column_sums_varlen, each=column_sums)


def select(scores: Tensor, selection: Selection) -> Tensor:
    """As `functional.select`."""
    return _survivors(scores, selection, 0, scores.shape[1])


def _survivors(scores: Tensor, selection: Selection, first: int, length: int) -> Tensor:
    """The surviving tokens [B, first + K + rest] of a sequence of `length` whose columns begin at token `first`."""
    prior = None if selection.prior is None else selection.prior.to(scores.dtype)
    return _select(
        scores, selection.segments, selection.positions, selection.budgets, prior, first, length, selection.num_selected,
        min(selection.num_positions or 0, 1 << 40), DEDUPLICATION.index(selection.dedup), selection.soft_weight, _limit,
    )  # fmt: skip


def gather(indices: Tensor, tensors: Sequence[Tensor], dims: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """As `functional.gather`."""
    sources = [
        tensor.resolve_conj().resolve_neg() if tensor.is_neg() or tensor.is_complex() else tensor for tensor in tensors
    ]
    return tuple(_gather(indices, sources, [batch for batch, _ in dims], [token for _, token in dims]))


def prune(pruning: Pruning) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`."""
    scores, on_phase = pruning.scores, pruning.on_phase
    if scores is None:
        scores = column_sums(pruning.scoring)
    on_phase("score")
    indices = _survivors(scores, pruning.selection, *pruning.sequence)
    on_phase("select")
    moved = gather(indices, pruning.tensors, pruning.dims)
    on_phase("compact")
    return indices, moved

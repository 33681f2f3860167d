"""The operations on checked arguments: what `functional.py` calls once it has checked a stranger's, and the pruner at every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adatp_kernels.ops.arguments import Scoring, Selection
from adatp_kernels.ops.compiled import compiled_prune
from adatp_kernels.ops.dispatch import implementation


def column_sums(scoring: Scoring, backend: str) -> Tensor:
    """As `functional.column_sums`."""
    moved = () if scoring.lse is None else (scoring.lse,)
    return implementation("column_sums", backend, scoring.query, scoring.key, moved=moved)(scoring)


def prune(
    scoring: Scoring,
    selection: Selection,
    scores: Tensor | None,
    tensors: Sequence[Tensor],
    dims: Sequence[tuple[int, int]],
    sequence_start: int,
    backend: str,
    on_phase: Callable[[str], None] | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`; `dims` are each tensor's (batch, token)."""
    if torch.compiler.is_compiling():
        return compiled_prune(scoring, selection, scores, tensors, dims, sequence_start, backend)
    if scores is None:
        run = implementation("prune", backend, scoring.query, scoring.key, moved=tensors)
    else:
        run = implementation("prune", backend, scoring.query, scoring.key, scores, moved=tensors)
    return run(scoring, selection, scores, tensors, dims, sequence_start, on_phase or _ignore)


def _ignore(phase: str) -> None:
    """Nobody asked when a phase is done."""

"""The operations on checked arguments: what `functional.py` calls once it has checked a stranger's, and the pruner at every stage."""

from __future__ import annotations

import torch
from torch import Tensor

from adatp_kernels.ops.arguments import Pruning, Scoring
from adatp_kernels.ops.compiled import compiled_prune
from adatp_kernels.ops.dispatch import implementation


def column_sums(scoring: Scoring, backend: str) -> Tensor:
    """As `functional.column_sums`."""
    moved = () if scoring.lse is None else (scoring.lse,)
    return implementation("column_sums", backend, scoring.query, scoring.key, moved=moved)(scoring)


def prune(pruning: Pruning, backend: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`."""
    if torch.compiler.is_compiling():
        return compiled_prune(pruning, backend)
    scoring, scores = pruning.scoring, pruning.scores
    if scores is None:
        run = implementation("prune", backend, scoring.query, scoring.key, moved=pruning.tensors)
    else:
        run = implementation("prune", backend, scoring.query, scoring.key, scores, moved=pruning.tensors)
    return run(pruning)


def nobody_asked(phase: str) -> None:
    """The `on_phase` of callers who do not want to know when a phase is done."""

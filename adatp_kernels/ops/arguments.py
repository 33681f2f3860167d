"""The checked arguments of the operations, as backends receive them: what scores, and what is selected.

None is frozen, because that would take three times as long to make; nobody changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False, slots=True)
class Scoring:
    """What `column_sums` works on; see `functional.column_sums` for the meanings."""

    query: Tensor  # [B, Hq, T, D]
    key: Tensor  # [B, Hkv, N, D]
    query_start: int
    key_range: tuple[int, int]
    scale: float
    lse: Tensor | None  # [B, Hq, T]
    key_mask: Tensor | None  # [B, N]
    query_mask: Tensor | None  # [B, T]

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        return self.key.device


@dataclass(eq=False, slots=True)
class PackedScoring:
    """What `column_sums_varlen` works on; see `functional.column_sums_varlen` for the meanings."""

    query: Tensor  # [total_q, Hq, D]
    key: Tensor  # [total_k, Hkv, D]
    cu_seqlens_q: Tensor  # [B + 1]
    cu_seqlens_k: Tensor  # [B + 1]
    query_range: Tensor | None  # [B, 2]
    key_range: Tensor | None  # [B, 2]
    scale: float
    lse: Tensor | None  # [Hq, total_q]
    query_mask: Tensor | None  # [total_q]

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        return self.key.device


@dataclass(eq=False, slots=True)
class Selection:
    """What `select` is to do with the scores; see `functional.select` for the meanings."""

    segments: Tensor  # [B, N] int64
    positions: Tensor  # [B, N] int64
    budgets: Tensor  # [B, S] int64
    dedup: str
    soft_weight: float
    prior: Tensor | None  # [B, N]
    num_selected: int
    num_positions: int | None
    segment_ranges: Tensor | None = None  # [B, S, 3] int64, the last dimension dense
    longest_segment: int | None = None  # with the ranges alone


@dataclass(eq=False, slots=True)
class Pruning:
    """What `prune` works on; see `functional.prune` for the meanings."""

    scoring: Scoring
    selection: Selection
    scores: Tensor | None  # [B, v1-v0]
    tensors: Sequence[Tensor]
    dims: Sequence[tuple[int, int]]  # of each tensor, (batch, token)
    sequence_start: int
    on_phase: Callable[[str], None]

    @property
    def device(self) -> torch.device:
        """Where the keys are."""
        return self.scoring.key.device

    @property
    def sequence(self) -> tuple[int, int]:
        """Tokens before the columns, and in the whole sequence."""
        start = self.sequence_start
        return self.scoring.key_range[0] - start, self.scoring.key.shape[2] - start


def has_unusual(*tensors: Tensor) -> bool:
    """Whether any is sparse, quantized, or one of many within torch.vmap: what compiled kernels cannot read."""
    if any([tensor.layout != torch.strided or tensor.is_quantized for tensor in tensors]):
        return True
    # Asked of every tensor only where there is a transformation at all.
    functorch = torch._C._functorch
    return functorch.peek_interpreter_stack() is not None and any(map(functorch.is_batchedtensor, tensors))


def moved_shape(shape: Sequence[int], dims: tuple[int, int], batch: int, tokens: int) -> list[int]:
    """What becomes of a tensor's `shape` once `tokens` of its tokens are left, in each of `batch` rows; `dims` are (batch, token)."""
    shape = list(shape)
    if batch != 1:  # a single row's tokens are taken of every row
        shape[dims[0]] = batch
    shape[dims[1]] = tokens
    return shape

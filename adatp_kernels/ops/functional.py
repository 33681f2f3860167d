"""The public operations: what they compute, what they accept, and the way to a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.errors import integer
from adatp_kernels.ops import checked, checks
from adatp_kernels.ops.arguments import PackedScoring, Pruning, Scoring
from adatp_kernels.ops.dispatch import implementation
from adatp_kernels.plan import Stage


def row_lse(
    query: Tensor,
    key: Tensor,
    *,
    query_start: int,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-sum-exp of every query row over the keys it may see.

    Only for attention that does not return it; see ``adatp_kernels/attention`` for attention that does.

    Parameters
    ----------
    query : Tensor [B, Hq, T, D]
        Query rows, any strides; float16, bfloat16, float32 (float64 on the reference).
    key : Tensor [B, Hkv, N, D]
        Keys, same dtype and device; ``Hq % Hkv == 0``.
    query_start : int
        Key coordinate of the first row: row i sees keys ``≤ query_start + i``.
    scale : float, optional
        Factor on the scores; ``D ** -0.5`` by default.
    key_mask : BoolTensor [B, N], optional
        False marks a key that nobody sees (padding).
    backend : {"auto", "reference", "triton", "native"}

    Returns
    -------
    Tensor [B, Hq, T]
        float32 (float64 for float64 input), natural logarithm, −inf for a row that sees nothing.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype, shape or range; the message names them.
    RuntimeError
        If the named backend cannot run.
    """
    scale = checks.attention_inputs(query, key, query_start, scale, key_mask)
    run = implementation("row_lse", backend, query, key)
    return run(query, key, query_start=query_start, scale=scale, key_mask=key_mask)


def column_sums(
    query: Tensor,
    key: Tensor,
    *,
    query_start: int,
    key_range: tuple[int, int],
    scale: float | None = None,
    lse: Tensor | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """How much the query rows attend to each column of `key_range` (``algorithm.md``, step 4).

    ``a_j = 1/(H·|Q|) · Σ_h Σ_{q∈Q} exp(q·k_j·scale − lse_q)``: the column mean of the attention map
    over all heads and all unmasked rows, where each row's softmax runs over every key it may see.

    Parameters
    ----------
    query, key, query_start, scale, key_mask, backend
        As for `row_lse`. `key` holds all keys, not only those in `key_range`.
    key_range : (int, int)
        The columns ``[v0, v1)`` that are scored, ``0 ≤ v0 < v1 ≤ N``.
    lse : Tensor [B, Hq, T], optional
        Natural-log LSE of the rows, float32 or float64, as flash attention returns it; computed if absent.
        Its values are not checked, for which a GPU would have to be waited for: NaN in a row that scores makes NaN of
        the scores of all columns that it sees.
    query_mask : BoolTensor [B, T], optional
        False marks a row that does not score; a batch row without any gets zeros.

    Returns
    -------
    Tensor [B, v1-v0]
        float32 (float64 for float64 input).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `row_lse`.
    """
    scale = checks.attention_inputs(query, key, query_start, scale, key_mask)
    key_range = checks.column_range(key_range, key.shape[2])
    checks.row_tensors(query, lse, query_mask)
    scoring = Scoring(query, key, query_start, key_range, scale, lse, key_mask, query_mask)
    return checked.column_sums(scoring, backend)


def column_sums_varlen(
    query: Tensor,
    key: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    query_range: Tensor | None = None,
    key_range: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    query_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`column_sums` of sequences of any lengths packed one after the other, as flash attention's varlen form has them.

    The scores are lined up with the packed keys, so one `select` and one `gather` serve the whole batch as a single
    row: number the segments on from sequence to sequence, and give everything outside the videos the segment −1.

    Parameters
    ----------
    query : Tensor [total_q, Hq, D]
        Query rows of all sequences, any strides; float16, bfloat16, float32 (float64 on the reference). The scoring
        rows alone are fastest; `query_range` picks them from all rows without a copy.
    key : Tensor [total_k, Hkv, D]
        Keys of all sequences, same dtype and device; ``Hq % Hkv == 0``.
    cu_seqlens_q, cu_seqlens_k : integer Tensor [B + 1]
        Where each sequence begins, from 0, and last where the last one ends; int32 or int64, on the same device. What
        lies behind is padding, as a CUDA graph of fixed size needs it. Causality is aligned to the lower right, as
        flash attention's: row i of T sees keys ``≤ N − T + i`` of its sequence's N.
    query_range : integer Tensor [B, 2], optional
        Of each sequence's rows those that score, ``[first, last)``; all of them by default.
    key_range : integer Tensor [B, 2], optional
        Of each sequence's keys those that are scored, ``[v0, v1)``; all of them by default.
    scale : float, optional
        Factor on the scores; ``D ** -0.5`` by default.
    lse : Tensor [Hq, total_q], optional
        Natural-log LSE of the rows, float32 or float64, laid out as flash attention's varlen form returns it (old
        ones pad it instead); computed if absent.
    query_mask : BoolTensor [total_q], optional
        False marks a row that does not score.
    backend : {"auto", "reference", "triton", "native"}

    Returns
    -------
    Tensor [total_k]
        float32 (float64 for float64 input): each key's mean probability over heads and scoring rows of its sequence;
        zero outside `key_range`, in padding, and in a sequence without a row that scores.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype, shape or value; the message names them. Lengths and ranges are checked
        on the host only: reading them from a GPU would wait for it, and there they are trusted.
    RuntimeError
        If the named backend cannot run.
    """
    scale = checks.packed_inputs(query, key, cu_seqlens_q, cu_seqlens_k, query_range, key_range, scale, lse, query_mask)
    run = implementation("column_sums_varlen", backend, query, key, moved=() if lse is None else (lse,))
    return run(
        PackedScoring(query, key, cu_seqlens_q, cu_seqlens_k, query_range, key_range, scale, lse, query_mask)
    )  # fmt: skip


def select(
    scores: Tensor,
    segments: Tensor,
    positions: Tensor,
    budgets: Tensor | Sequence[Any],
    *,
    dedup: str = "strict",
    soft_weight: float = 0.0,
    prior: Tensor | None = None,
    num_selected: int | None = None,
    num_positions: int | None = None,
    segment_ranges: Tensor | None = None,
    longest_segment: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Debias the scores and keep the best columns of every segment (``algorithm.md``, steps 5 to 8).

    Parameters
    ----------
    scores : Tensor [B, N]
        float32 or float64. NaN ranks below everything; −0 equals +0; ties go to the smaller index.
    segments : integer Tensor [B, N] or [N]
        Segment of each column, in any order; −1 marks a column that is always kept.
    positions : integer Tensor [B, N] or [N]
        Spatial position of each column within its frame; ignored where the segment is −1.
    budgets : integer Tensor or nested sequence, [B, S] or [S]
        Columns that each segment keeps. Every row must keep equally many in all.
    dedup : {"strict", "soft", "off"}
        Of the columns with equal segment and position, ``"strict"`` removes all but the best, and
        ``"soft"`` multiplies the score of all but the best by `soft_weight`.
    soft_weight : float
        In ``[0, 1]``; used by ``"soft"``.
    prior : Tensor [B, N] or [N], optional
        Factor on each column's score, applied before anything else.
    num_selected : int, optional
        K, for callers that know it. Then nothing is read back from the device and the budgets are
        trusted; otherwise they are checked and K is counted, which waits for the device.
    num_positions : int, optional
        More than any position, for callers that know it and give `num_selected`: a GPU backend then has
        nothing to read back, either.
    segment_ranges : integer Tensor [B, S, 3] or [S, 3], optional
        For callers who know where segments lie: ``(first, last, place)`` of each, such that the columns ``[first, last)``
        are the segment's own and always-kept ones, and ``place`` is how many columns before ``first`` survive. A column
        that may survive is in one range; ``(0, 0, 0)`` is that of a segment that keeps nothing. int64 is not converted. A GPU
        backend then looks at each column once; the result is the same. Trusted, like the budgets, if `num_selected` is given.
    longest_segment : int, optional
        With `segment_ranges`: at least as much as the longest range has columns.
    backend : {"auto", "reference", "triton", "native"}

    Returns
    -------
    LongTensor [B, K]
        Kept columns, ascending; the same on every run and every backend for the same scores.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype, shape or range, and (unless `num_selected` is given)
        for a budget above the candidates of its segment, an id out of range, or rows that keep
        different numbers.
    RuntimeError
        If the named backend cannot run.
    """
    checks.score_tensor(scores)
    columns = (scores.shape[0], scores.shape[1])
    chosen = checks.selection(
        columns, scores.device, segments, positions, budgets, dedup, soft_weight, prior, num_selected, num_positions,
        segment_ranges, longest_segment,
    )  # fmt: skip
    return implementation("select", backend, scores)(scores, chosen)


def gather(
    indices: Tensor, *tensors: Tensor, dims: int | Sequence[int | tuple[int, int]], backend: str = "auto"
) -> tuple[Tensor, ...]:
    """Move the tokens `indices` of every tensor together (``algorithm.md``, step 9).

    Parameters
    ----------
    indices : LongTensor [B, K]
        Tokens to take, per batch row. On a GPU they are not checked against the tensors' length.
    *tensors : Tensor
        Anything that travels with a token, of any dtype, number of dimensions and strides.
    dims : int, or a sequence with one entry per tensor
        Token dimension of each tensor (an int stands for all); its batch dimension is 0, or is named by
        a pair ``(batch, token)``, for instance ``(1, 2)`` for position ids of shape [3, B, T]. A batch
        dimension of size 1 is broadcast to B. With ``B == 1`` any tensor will do: all its batch-like
        dimensions take the same tokens.
    backend : {"auto", "reference", "triton", "native"}

    Returns
    -------
    tuple of Tensor
        Contiguous, with K in place of the token dimension (and B in place of the batch dimension).

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, shape or range; the message names the tensor.
    RuntimeError
        If the named backend cannot run.
    """
    pairs = checks.gather_inputs(indices, tensors, dims)
    return implementation("gather", backend, indices, moved=tensors)(indices, tensors, pairs)


def prune(
    query: Tensor,
    key: Tensor,
    tensors: Sequence[Tensor],
    stage: Stage,
    *,
    dims: int | Sequence[int | tuple[int, int]],
    segments: Tensor,
    positions: Tensor,
    query_start: int,
    key_range: tuple[int, int],
    sequence_start: int = 0,
    scale: float | None = None,
    lse: Tensor | None = None,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    scores: Tensor | None = None,
    dedup: str = "strict",
    soft_weight: float = 0.0,
    prior: Tensor | None = None,
    budgets: Tensor | None = None,
    num_selected: int | None = None,
    num_positions: int | None = None,
    segment_ranges: Tensor | None = None,
    longest_segment: int | None = None,
    backend: str = "auto",
    on_phase: Callable[[str], None] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One whole pruning stage: score, select, gather (``algorithm.md``, steps 4 to 9).

    The sequence is ``[sequence_start, N)`` of the keys' coordinates; everything outside `key_range` is
    text and survives.

    Parameters
    ----------
    query : Tensor [B, Hq, T, D]
        The rows that score.
    key, query_start, key_range, scale, lse, key_mask, query_mask
        As for `column_sums`.
    tensors : sequence of Tensor
        What travels with the ``L = N − sequence_start`` tokens of the sequence.
    stage : Stage
        One stage of a plan; its budgets hold for every batch row.
    dims : int or sequence
        As for `gather`.
    segments, positions, dedup, soft_weight, prior
        As for `select`, one entry per column of `key_range`.
    sequence_start : int
        Key coordinate of the first token of `tensors`: the length of the cache before this prompt.
    scores : Tensor [B, v1-v0], optional
        Scores to use instead of the attention's; `query` is then not read.
    budgets : LongTensor [S], optional
        ``stage.budgets`` on the device, for callers that keep them there; copied there if absent.
    num_selected : int, optional
        Surviving columns of `key_range`, always-kept ones included. As in `select`: given, nothing
        waits for the device; absent, it is counted.
    num_positions, segment_ranges, longest_segment
        As for `select`.
    on_phase : callable, optional
        Called with ``"score"``, ``"select"``, ``"compact"`` after each phase was launched; not inside
        torch.compile, which sees one operator.

    Returns
    -------
    indices : LongTensor [B, M]
        Surviving tokens of the sequence, text included, ascending.
    tensors : tuple of Tensor
        `tensors` at `indices`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for the single operations.
    """
    if not isinstance(stage, Stage):
        raise TypeError(f"stage: expected a Stage of a plan, got {type(stage).__name__}")
    scale = checks.attention_inputs(query, key, query_start, scale, key_mask)
    checks.row_tensors(query, lse, query_mask)
    key_range = checks.column_range(key_range, key.shape[2])
    columns = (key.shape[0], key_range[1] - key_range[0])
    if integer("sequence_start", sequence_start, low=0) > key_range[0]:
        raise ValueError(f"sequence_start: expected at most key_range[0] = {key_range[0]}, got {sequence_start}")
    if scores is not None:
        checks.score_tensor(scores)
        checks.tensor("scores", scores, (torch.float32, torch.float64), key.device)
        checks.shape("scores", scores, columns, "[B, v1-v0]")
    limits = stage.budgets if budgets is None else budgets
    chosen = checks.selection(
        columns, key.device, segments, positions, limits, dedup, soft_weight, prior, num_selected, num_positions,
        segment_ranges, longest_segment,
    )  # fmt: skip
    pairs = checks.token_tensors(tensors, dims, columns[0], key.device, key.shape[2] - sequence_start)
    scoring = Scoring(query, key, query_start, key_range, scale, lse, key_mask, query_mask)
    asked = on_phase or checked.nobody_asked
    return checked.prune(Pruning(scoring, chosen, scores, tuple(tensors), pairs, sequence_start, asked), backend)

"""Scores of all visual columns, with the LSE given and without; and of prompts packed one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import baselines
import torch
from torch import Tensor

from adatp_kernels import ops
from cases.case import Case, Scale, Variant, assert_close, attention_inputs, score_floor


def suite(scale: Scale, visual: tuple[int, ...], text: tuple[int, ...]) -> Iterator[Case]:
    """All of them; the whole map is so slow that once is enough to see it."""
    for columns, rows in itertools.product(visual, text):
        yield column_sums(scale, columns, rows, with_map=columns == visual[0] and rows == 64)
    yield packed(scale, visual[0])


def column_sums(scale: Scale, visual: int, text: int, batch: int = 1, with_map: bool = False) -> Case:
    """One prompt's, or a batch's of copies of its shape."""
    columns, start = slice(scale.before, scale.before + visual), scale.before + visual
    where = {"query_start": start, "key_range": (columns.start, columns.stop)}

    def make(seed: int) -> tuple:
        query, key = attention_inputs(scale, visual, text, batch, seed, start + text if with_map else text)
        return query, key, ops.row_lse(query[:, :, -text:], key, query_start=start, backend="reference")

    def check(name: str, result: Tensor, inputs: tuple) -> None:
        query, key, _ = (tensor[:1].double() for tensor in inputs)
        assert result.shape == (batch, visual), f"{name}: {list(result.shape)}"
        assert result.isfinite().all(), f"{name}: not all scores are numbers"
        assert_close(scale, name, result[:1], baselines.grouped_rows(query, key, text, columns))

    def ours(query: Tensor, key: Tensor, lse: Tensor | None, backend: str) -> Tensor:
        return ops.column_sums(query[:, :, -text:], key, lse=lse, backend=backend, **where)

    variants: dict[str, Variant] = {}
    for name, backend in scale.backends.items():
        variants[f"adatp, LSE given{name}"] = Variant(lambda q, k, lse, b=backend: ours(q, k, lse, b), backend)
        variants[f"adatp{name}"] = Variant(lambda q, k, lse, b=backend: ours(q, k, None, b), backend)
    variants["grouped rows"] = Variant(lambda q, k, lse: baselines.grouped_rows(q, k, text, columns))
    variants["grouped rows, LSE given"] = Variant(
        lambda q, k, lse: baselines.grouped_rows_given_lse(q, k, lse, text, columns)
    )
    variants["text rows in torch"] = Variant(lambda q, k, lse: baselines.text_rows(q, k, text, columns))
    if with_map:
        variants["materialised map"] = Variant(lambda q, k, lse: baselines.materialised_map(q, k, text, columns))
    rival, reason = baselines.colreduce(scale.device)
    if rival is not None:
        variants["flash-colreduce"] = Variant(lambda q, k, lse: rival(q, k, text, columns))
    moved, flop = score_floor(scale, visual, text, batch)
    shape = {"N": visual, "T": text, "batch": batch}
    absent = {} if reason is None else {"flash-colreduce": reason}
    return Case("column_sums", shape, make, variants, check, moved, flop, absent=absent)


def packed(scale: Scale, visual: int, text: int = 64) -> Case:
    """Eight prompts of different lengths, against one call a prompt."""
    counts = [visual * part // 8 for part in range(1, 9)]
    lengths = [scale.before + count + text for count in counts]
    rows = torch.arange(0, 9 * text, text, device=scale.device, dtype=torch.int32)
    keys = torch.tensor([0, *itertools.accumulate(lengths)], device=scale.device, dtype=torch.int32)
    columns = torch.tensor([[scale.before, scale.before + count] for count in counts], device=scale.device)
    bounds = list(itertools.pairwise(keys.tolist()))

    def make(seed: int) -> tuple:
        random = {"generator": torch.Generator(scale.device).manual_seed(seed), "device": scale.device}
        query = torch.randn(8 * text, scale.heads, scale.head_dim, dtype=scale.dtype, **random)
        return query, torch.randn(sum(lengths), scale.kv_heads, scale.head_dim, dtype=scale.dtype, **random)

    def ours(query: Tensor, key: Tensor, backend: str) -> Tensor:
        where = {"cu_seqlens_q": rows, "cu_seqlens_k": keys, "key_range": columns}
        return ops.column_sums_varlen(query, key, backend=backend, **where)

    def each(query: Tensor, key: Tensor) -> Tensor:
        scores = torch.zeros(len(key), device=key.device, dtype=torch.promote_types(query.dtype, torch.float32))
        for number, (first, end) in enumerate(bounds):
            q, k = query[None, number * text : (number + 1) * text], key[None, first:end]
            scored = slice(scale.before, scale.before + counts[number])
            scores[first:end][scored] = baselines.grouped_rows(q.transpose(1, 2), k.transpose(1, 2), text, scored)[0]
        return scores

    def check(name: str, result: Tensor, inputs: tuple) -> None:
        assert_close(scale, name, result, each(*(tensor.double() for tensor in inputs)))

    moved, flop = (sum(part) for part in zip(*(score_floor(scale, count, text, 1) for count in counts), strict=True))
    backend = scale.backends[""]
    variants = {"adatp": Variant(lambda q, k: ours(q, k, backend), backend), "grouped rows": Variant(each)}
    shape = {"N": sum(counts), "T": text, "packed": 8}
    return Case("column_sums", shape, make, variants, check, moved, flop, operation="column_sums_varlen")

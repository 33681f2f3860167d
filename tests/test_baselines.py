"""Baselines of the benchmarks compute what is measured against them, those of packages that are not here by stand-ins."""

import sys
from types import SimpleNamespace

import baselines
import pytest
import torch

from adatp_kernels import ops

ROWS, COLUMNS = 5, slice(3, 43)


@pytest.fixture
def attention():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, ROWS, 16, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 2, 48, 16, generator=generator, dtype=torch.float64)
    return query, key, ops.column_sums(query, key, query_start=43, key_range=(3, 43), backend="reference")


def test_scores(attention):
    query, key, expected = attention
    lse = ops.row_lse(query, key, query_start=43, backend="reference")
    for actual in (
        baselines.text_rows(query, key, ROWS, COLUMNS),
        baselines.grouped_rows(query, key, ROWS, COLUMNS),
        baselines.grouped_rows_given_lse(query, key, lse, ROWS, COLUMNS),
        baselines.rows_by_part(query, key, ROWS, COLUMNS),
        baselines.rows_by_part(query, key, ROWS, COLUMNS, heads=1),
        baselines.rows_by_part(query, key, ROWS, COLUMNS, keys_first=True),
        baselines.rows_by_part_given_lse(query, key, lse, ROWS, COLUMNS),
    ):
        torch.testing.assert_close(actual, expected)
    halves = baselines.in_float32(baselines.rows_by_part)(query.half(), key.half(), ROWS, COLUMNS)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves.double(), expected, rtol=1e-2, atol=1e-4)


def test_choices_and_moves():
    scores = (torch.rand(2, 50, generator=torch.Generator().manual_seed(0)).argsort(1) + 1).float()
    expected = torch.stack([(row > 50 - 9).nonzero()[:, 0] for row in scores])
    for choose in (baselines.topk_and_sort, baselines.argsort_and_sort, baselines.threshold_and_nonzero):
        assert choose(scores, 9).equal(expected)
    tensors, dims = [torch.randn(1, 50, 3), torch.randn(1, 2, 50)], [1, 2]
    for move in (baselines.index_select, baselines.advanced_indexing, baselines.gather_each):
        first, second = move(expected[:1], tensors, dims)
        assert first.equal(tensors[0][:, expected[0]]) and second.equal(tensors[1][..., expected[0]])


def test_segments_of_any_size():
    sizes, budgets = (7, 3, 12), (2, 3, 0)
    scores = (torch.rand(2, 22, generator=torch.Generator().manual_seed(0)).argsort(1) + 1).float()
    segments = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    expected = ops.select(scores, segments, torch.arange(22), torch.tensor(budgets), dedup="off", backend="reference")
    assert baselines.SegmentTopk(sizes, budgets, scores.device)(scores).equal(expected)


def test_what_is_not_installed_says_so():
    for package, rival in (("flash-colreduce", baselines.colreduce), ("flashinfer-python", baselines.flashinfer_topk)):
        call, reason = rival(torch.device("cuda"))
        assert (call, reason) == (None, f"{package} is not installed") or call is not None


def test_flash_colreduce_is_called_as_it_wants_to_be(attention, monkeypatch):
    def flash_colreduce(query, key, reduction, is_causal=False, scale=None):
        assert query.shape[:2] == key.shape[:2], "it knows no grouped heads"
        assert reduction == "sum"
        hidden = torch.ones(query.shape[2], key.shape[2]).triu(1 + key.shape[2] - query.shape[2]) * is_causal
        logits = (query @ key.mT * query.shape[3] ** -0.5).masked_fill(hidden.bool(), float("-inf"))
        return logits.softmax(-1).sum(2)

    monkeypatch.setitem(sys.modules, "flash_colreduce", SimpleNamespace(flash_colreduce=flash_colreduce))
    query, key, expected = attention
    call, reason = baselines.colreduce(torch.device("cuda"))
    assert reason is None
    torch.testing.assert_close(call(query, key, ROWS, COLUMNS).double(), expected, rtol=1e-5, atol=1e-7)


def test_flashinfer_is_asked_for_what_is_deterministic(monkeypatch):
    asked = {}

    def top_k(input, k, sorted=False, deterministic=False, tie_break=0):
        asked.update(deterministic=deterministic, tie_break=tie_break)
        return input.topk(k)

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(top_k=top_k))
    call, reason = baselines.flashinfer_topk(torch.device("cuda"))
    assert reason is None
    scores = (torch.rand(2, 50, generator=torch.Generator().manual_seed(0)).argsort(1) + 1).float()
    assert call(scores, 9).equal(baselines.topk_and_sort(scores, 9))
    assert asked == {"deterministic": True, "tie_break": 1}

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(top_k=lambda input, k, sorted=False: None))
    assert baselines.flashinfer_topk(torch.device("cuda")) == (
        None,
        "flashinfer-python: this version has no deterministic top_k",
    )

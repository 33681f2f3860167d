"""Column sums without a given LSE: what one pass over the keys keeps, what it computes again, and what threads add up."""

import importlib
import math

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain
from compiler import compiler_or_skip
from op_inputs import inputs

from adatp_kernels import ops

compiler_or_skip()
native = importlib.import_module("adatp_kernels.ops.native.cpu")
# A panel has 8, 16 or 32 rows, depending on the instructions: so many keys are more than any of them keeps.
LONG = 33_000


@pytest.fixture(
    params=range(torch.ops.adatp_cpu.best_isa() + 1), ids=lambda number: native.INSTRUCTIONS[number], autouse=True
)
def instructions(request, monkeypatch):
    monkeypatch.setattr(native, "_limit", request.param)


def both(query, key, **where):
    """The native scores, which must be the reference's to float32's rounding, NaN included."""
    actual = ops.column_sums(query, key, backend="native", **where)
    expected = ops.column_sums(query, key, backend="reference", **where)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=1e-7, equal_nan=True)
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "dim", "heads", "key_range"),
    [
        (70, 1000, 96, 6, (0, 1000)),  # panels that end within a head
        (33, 777, 17, 4, (100, 101)),  # one column, and a head dim that is no multiple of anything
        (64, 2000, 64, 4, (960, 1007)),  # from the middle of a tile to the middle of the next
        (40, LONG, 8, 2, (LONG - 500, LONG - 1)),  # the last parts alone
        (40, LONG, 8, 2, (3, LONG)),  # more than is kept
    ],
)
def test_any_range_of_any_number_of_keys(rows, columns, dim, heads, key_range, dtype):
    query, key = inputs(rows, columns, dim, heads=heads, kv_heads=2, dtype=dtype)
    query = query * 3  # so that some keys stand out
    where = {"query_start": columns - rows, "key_range": key_range}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=dtype)
    assert_as_good_as_plain(ops.column_sums(query, key, backend="native", **where), expected, plain, 1e-5)


@pytest.mark.parametrize(("rows", "columns", "heads"), [(9, 3000, 4), (70, 3000, 6), (40, LONG, 2)])
def test_the_number_of_threads_changes_no_bit(rows, columns, heads):
    query, key = inputs(rows, columns, 16, heads=heads, kv_heads=2)
    where = {"query_start": columns - rows, "key_range": (5, columns - 10), "backend": "native"}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results += [ops.column_sums(query, key, **where) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(result.equal(results[0]) for result in results)
    assert ops.column_sums(query[1:], key[1:], **where)[0].equal(results[0][1])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [(0, 2), (5, 2), (700, 2), (2999, 0)])
def test_keys_that_are_no_numbers(value, place):
    """In the range, before it, in another part, and where only the last rows see it."""
    query, key = inputs(70, 3000, 16, heads=4, kv_heads=2)
    key[0, 1, place[0], place[1]] = value
    scores = both(query, key, query_start=2930, key_range=(3, 2950))
    assert scores[0].isnan().any() or value != math.nan or place[0] == 2999
    assert scores[1].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_numbers_beyond_what_is_kept(value):
    query, key = inputs(40, LONG, 8, heads=2, kv_heads=2)
    key[0, 0, LONG - 100, 0] = value
    both(query, key, query_start=LONG - 40, key_range=(0, LONG))


def test_rows_that_do_not_count_may_hold_anything():
    query, key = inputs(70, 500, 16, heads=4, kv_heads=2)
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[:, 3] = mask[:, 66] = mask[1, 20:50] = False
    where = {"query_start": 430, "key_range": (0, 500), "query_mask": mask, "backend": "native"}
    expected = ops.column_sums(query, key, **where)
    for value in (math.nan, math.inf):
        query.transpose(1, 2)[~mask] = value
        assert ops.column_sums(query, key, **where).equal(expected)


def test_rows_that_see_nothing_and_columns_that_nobody_sees():
    query, key = inputs(70, 500, 16, heads=4, kv_heads=2)
    mask = torch.ones(2, 500, dtype=torch.bool)
    mask[0, :40] = mask[1] = False
    scores = both(query, key, query_start=20, key_range=(0, 500), key_mask=mask)
    assert (scores[0, 90:] == 0).all() and (scores[1] == 0).all() and scores[0, 40:90].count_nonzero() == 50


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_scores_far_apart(scale):
    """Numerators of an early tile are nothing beside a later one's, or all is even."""
    query, key = inputs(70, 1000, 16, heads=4, kv_heads=2)
    key *= torch.linspace(0.1, 3, 1000)[:, None]
    where = {"query_start": 930, "key_range": (0, 1000), "scale": scale}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=torch.float32)
    assert_as_good_as_plain(ops.column_sums(query, key, backend="native", **where), expected, plain, 1e-4)


@pytest.mark.parametrize("rows", [1, 70])
def test_what_was_in_the_scores_before_is_not_read(rows):
    query, key = inputs(rows, 500, 16, heads=4, kv_heads=2)
    scores = torch.full((2, 300), math.nan)
    limit = native._limit
    torch.ops.adatp_cpu.column_sums.out(query, key, None, None, None, scores, 499, 100, 0.25, limit)
    expected = ops.column_sums(query, key, query_start=499, key_range=(100, 400), scale=0.25, backend="native")
    assert scores.equal(expected) and scores.isfinite().all()


def test_packed_prompts_are_the_same_as_alone():
    query, key = torch.randn(150, 4, 16), torch.randn(1300, 2, 16)
    rows, keys = torch.tensor([0, 70, 150]), torch.tensor([0, 700, 1300])
    packed = ops.column_sums_varlen(query, key, cu_seqlens_q=rows, cu_seqlens_k=keys, backend="native")
    for (first, last), (begin, end) in (((0, 70), (0, 700)), ((70, 150), (700, 1300))):
        alone = ops.column_sums(
            query[None, first:last].transpose(1, 2),
            key[None, begin:end].transpose(1, 2),
            query_start=end - begin - (last - first),
            key_range=(0, end - begin),
            backend="native",
        )
        assert packed[begin:end].equal(alone[0])

"""row_lse and column_sums on the reference backend, against definitions that share no code with it."""

import math

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain, names
from op_inputs import HALF, inputs, left_padding

from adatp_kernels.ops import column_sums, row_lse

pytestmark = pytest.mark.usefixtures("backend_of_auto")

# The reference computes in float32 what comes in half precision, so all dtypes meet float32's bound.
RELATIVE = 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
@pytest.mark.parametrize("columns", [1, 37, 199])
@pytest.mark.parametrize("rows", [1, 3, 17, 64])
def test_column_sums_is_the_mean_of_the_map(rows, columns, dim, dtype):
    query, key = inputs(rows, columns, dim, dtype=dtype)
    where = {"query_start": max(0, columns - rows), "key_range": (0, columns)}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=dtype)
    actual = column_sums(query, key, **where)
    assert actual.dtype == torch.float32
    assert_as_good_as_plain(actual, expected, plain, RELATIVE)
    torch.testing.assert_close(actual.sum(1), torch.ones(2))  # every row sees something
    lse = brute_force.row_lse(query, key, query_start=where["query_start"])
    for given_lse in (lse, lse.float(), lse.float().transpose(1, 2).contiguous().transpose(1, 2)):
        assert_as_good_as_plain(column_sums(query, key, lse=given_lse, **where), expected, plain, RELATIVE)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
@pytest.mark.parametrize("columns", [1, 37, 199])
@pytest.mark.parametrize("rows", [1, 3, 17, 64])
def test_row_lse(rows, columns, dim, dtype):
    query, key = inputs(rows, columns, dim, dtype=dtype)
    actual = row_lse(query, key, query_start=columns // 2)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(
        actual.double(), brute_force.row_lse(query, key, query_start=columns // 2), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (7, 1), (14, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_query_heads_that_share_a_key_head(heads, kv_heads, dtype):
    query, key = inputs(5, 37, 64, heads=heads, kv_heads=kv_heads, dtype=dtype)
    where = {"query_start": 32, "key_range": (3, 30)}
    expected, plain = (brute_force.column_sums(query, key, **where, dtype=d) for d in (torch.float64, dtype))
    assert_as_good_as_plain(column_sums(query, key, **where), expected, plain, RELATIVE)
    lse = row_lse(query, key, query_start=32)
    torch.testing.assert_close(lse.double(), brute_force.row_lse(query, key, query_start=32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("query_start", [0, 1, 20, 36, 1000])
def test_causal_offset(query_start):
    query, key = inputs(3, 37, 64)
    where = {"query_start": query_start, "key_range": (0, 37)}
    actual = column_sums(query, key, **where)
    expected = brute_force.column_sums(query, key, **where)
    assert_as_good_as_plain(actual, expected, expected, RELATIVE)
    assert (actual[:, query_start + 3 :] == 0).all()  # nobody sees what comes later


@pytest.mark.parametrize("key_range", [(0, 1), (36, 37), (5, 20), (0, 37)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_key_range_is_a_slice_of_the_whole(key_range, masked):
    query, key = inputs(6, 37, 64)
    mask = left_padding([0, 9], 37) if masked else None
    part = column_sums(query, key, query_start=20, key_range=key_range, key_mask=mask)
    whole = brute_force.column_sums(query, key, query_start=20, key_range=(0, 37), key_mask=mask)
    torch.testing.assert_close(part.double(), whole[:, slice(*key_range)], rtol=1e-4, atol=0)
    assert column_sums(query, key, query_start=20, key_range=list(key_range), key_mask=mask).equal(part)


def test_scale():
    query, key = inputs(4, 37, 64)
    where = {"query_start": 33, "key_range": (0, 37)}
    for scale in (0.5, 1):
        expected = brute_force.column_sums(query, key, scale=scale, **where)
        assert_as_good_as_plain(column_sums(query, key, scale=scale, **where), expected, expected, 1e-4)
        lse = row_lse(query, key, query_start=33, scale=scale)
        torch.testing.assert_close(
            lse.double(), brute_force.row_lse(query, key, query_start=33, scale=scale), rtol=1e-5, atol=1e-5
        )
    by_default = column_sums(query, key, **where)
    assert by_default.equal(column_sums(query, key, scale=64**-0.5, **where))


@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_batch_rows_with_different_padding(dtype, with_lse):
    query, key = inputs(17, 199, 64, batch=3, dtype=dtype)
    key_mask = left_padding([0, 50, 120], 199)
    query_mask = torch.ones(3, 17, dtype=torch.bool)
    query_mask[1, :9] = False
    query_mask[2, :16] = False
    where = {"query_start": 182, "key_range": (40, 190)}
    masks = {"key_mask": key_mask, "query_mask": query_mask}
    lse = row_lse(query, key, query_start=182, key_mask=key_mask) if with_lse else None
    expected, plain = (brute_force.column_sums(query, key, **where, **masks, dtype=d) for d in (torch.float64, dtype))
    actual = column_sums(query, key, lse=lse, **where, **masks)
    assert_as_good_as_plain(actual, expected, plain, RELATIVE)
    assert (actual[~key_mask[:, 40:190]] == 0).all()
    whole = column_sums(query, key, query_start=182, key_range=(0, 199), lse=lse, **masks)
    torch.testing.assert_close(whole.sum(1), torch.ones(3))


@pytest.mark.parametrize("with_lse", [False, True])
def test_rows_that_see_nothing_contribute_nothing(with_lse):
    # Keys 0 to 3 are padding and rows start at key 1: the first three of six rows see no key.
    query, key = inputs(6, 37, 64)
    key_mask = left_padding([4, 0], 37)
    lse = row_lse(query, key, query_start=1, key_mask=key_mask)
    assert (lse[0, :, :3] == -math.inf).all()
    assert lse[0, :, 3:].isfinite().all()
    assert lse[1].isfinite().all()
    where = {"query_start": 1, "key_range": (0, 37), "key_mask": key_mask}
    actual = column_sums(query, key, lse=lse if with_lse else None, **where)
    expected = brute_force.column_sums(query, key, **where)
    assert_as_good_as_plain(actual, expected, expected, RELATIVE)
    torch.testing.assert_close(actual.sum(1), torch.tensor([0.5, 1.0]))  # they still count in the mean


def test_a_batch_row_that_is_all_padding_scores_zero():
    query, key = inputs(3, 37, 64)
    key_mask = left_padding([37, 0], 37)
    actual = column_sums(query, key, query_start=34, key_range=(0, 37), key_mask=key_mask)
    assert (actual[0] == 0).all()
    assert actual[1].sum() == pytest.approx(1)


def test_a_batch_row_without_scoring_rows_gets_zeros():
    query, key = inputs(3, 37, 64)
    query_mask = torch.tensor([[False] * 3, [True] * 3])
    actual = column_sums(query, key, query_start=34, key_range=(0, 37), query_mask=query_mask)
    assert (actual[0] == 0).all()
    assert actual[1].sum() == pytest.approx(1)


@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nothing_leaks_from_masked_rows(poison, with_lse):
    query, key = inputs(5, 37, 64)
    query_mask = torch.tensor([[False, True, True, False, True], [True, True, False, False, False]])
    where = {"query_start": 32, "key_range": (2, 30), "query_mask": query_mask}
    dirty = query.masked_fill(~query_mask[:, None, :, None], poison)
    clean_lse, dirty_lse = (row_lse(q, key, query_start=32) if with_lse else None for q in (query, dirty))
    clean = column_sums(query, key, lse=clean_lse, **where)
    assert column_sums(dirty, key, lse=dirty_lse, **where).equal(clean)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nothing_leaks_from_padding(poison):
    query, key = inputs(5, 37, 64)
    key_mask = left_padding([6, 20], 37)
    where = {"query_start": 32, "key_mask": key_mask}
    dirty = key.masked_fill(~key_mask[:, None, :, None], poison)
    assert row_lse(query, dirty, **where).equal(row_lse(query, key, **where))
    assert column_sums(query, dirty, key_range=(0, 37), **where).equal(
        column_sums(query, key, key_range=(0, 37), **where)
    )


def test_nan_in_the_lse_shows_in_the_scores_of_all_that_its_row_sees():
    query, key = inputs(7, 37, 64)
    lse = row_lse(query, key, query_start=30)
    lse[1, 2, 3] = math.nan
    scores = column_sums(query, key, query_start=30, key_range=(4, 37), lse=lse)
    assert scores[1, :30].isnan().all() and not scores[0].isnan().any()


def test_float64_is_computed_in_float64():
    query, key = inputs(7, 37, 64, dtype=torch.float64)
    where = {"query_start": 30, "key_range": (0, 37)}
    actual, lse = column_sums(query, key, **where), row_lse(query, key, query_start=30)
    assert actual.dtype == lse.dtype == torch.float64
    torch.testing.assert_close(actual, brute_force.column_sums(query, key, **where), rtol=1e-12, atol=0)
    torch.testing.assert_close(lse, brute_force.row_lse(query, key, query_start=30), rtol=1e-12, atol=0)


def test_large_logits_do_not_overflow():
    query, key = inputs(3, 37, 64)
    where = {"query_start": 34, "key_range": (0, 37)}
    actual = column_sums(query * 1e3, key * 1e2, **where)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.sum(1), torch.ones(2))


def views():
    """The same query [2, 4, 5, 64] and key [2, 2, 37, 64] under other strides."""
    query, key = inputs(5, 37, 64)
    tokens_first = lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    dim_first = lambda t: t.mT.contiguous().mT  # noqa: E731
    wide = lambda t: torch.cat([t, torch.full_like(t, math.nan)], dim=-1)[..., :64]  # noqa: E731
    every_other = lambda t: torch.stack([t, torch.full_like(t, math.nan)], dim=3).flatten(2, 3)[:, :, ::2]  # noqa: E731
    tail = lambda t: torch.cat([torch.full_like(t, math.nan), t], dim=2)[:, :, t.shape[2] :]  # noqa: E731
    return [(query, key)] + [(view(query), view(key)) for view in (tokens_first, dim_first, wide, every_other, tail)]


@pytest.mark.parametrize("number", range(1, 6))
def test_strided_views(number):
    (query, key), (query_view, key_view) = views()[0], views()[number]
    assert query_view.equal(query)
    assert not query_view.is_contiguous()
    where = {"query_start": 32, "key_range": (3, 33)}
    close = {"rtol": 1e-5, "atol": 0}
    torch.testing.assert_close(column_sums(query_view, key_view, **where), column_sums(query, key, **where), **close)
    torch.testing.assert_close(
        row_lse(query_view, key_view, query_start=32), row_lse(query, key, query_start=32), **close
    )


def test_one_key_head_expanded_over_the_batch():
    query, key = inputs(5, 37, 64)
    shared = key[:1].expand(2, -1, -1, -1)
    where = {"query_start": 32, "key_range": (0, 37)}
    assert column_sums(query, shared, **where).equal(column_sums(query, shared.contiguous(), **where))


def test_same_input_same_bits():
    query, key = inputs(64, 199, 128, heads=14, dtype=torch.bfloat16)
    where = {"query_start": 135, "key_range": (5, 130)}
    assert column_sums(query, key, **where).equal(column_sums(query.clone(), key.clone(), **where))
    assert row_lse(query, key, query_start=135).equal(row_lse(query.clone(), key.clone(), query_start=135))


ROW_LSE_MISTAKES = [
    ({"query": None}, "query"),
    ({"query": torch.ones(2, 4, 3, 64, dtype=torch.int64)}, "query"),
    ({"query": torch.ones(4, 3, 64)}, "query"),
    ({"query": torch.ones(2, 4, 0, 64)}, "query"),
    ({"query": torch.ones(2, 3, 3, 64)}, "query"),
    ({"key": [1.0]}, "key"),
    ({"key": torch.ones(2, 2, 37, 64, dtype=torch.float64)}, "key"),
    ({"key": torch.ones(2, 2, 37, 64, device="meta")}, "key"),
    ({"key": torch.ones(2, 2, 0, 64)}, "key"),
    ({"key": torch.ones(1, 2, 37, 64)}, "key"),
    ({"key": torch.ones(2, 2, 37, 32)}, "key"),
    ({"query_start": -1}, "query_start"),
    ({"query_start": 1.5}, "query_start"),
    ({"query_start": None}, "query_start"),
    ({"query_start": True}, "query_start"),
    ({"scale": 0}, "scale"),
    ({"scale": -1.0}, "scale"),
    ({"scale": math.nan}, "scale"),
    ({"scale": "1"}, "scale"),
    ({"key_mask": torch.ones(2, 37)}, "key_mask"),
    ({"key_mask": torch.ones(2, 36, dtype=torch.bool)}, "key_mask"),
    ({"key_mask": torch.ones(37, dtype=torch.bool)}, "key_mask"),
    ({"key_mask": [True] * 37}, "key_mask"),
    ({"key_mask": torch.ones(2, 37, dtype=torch.bool, device="meta")}, "key_mask"),
    ({"backend": "cuda"}, "backend"),
]


@pytest.mark.parametrize(("changes", "argument"), ROW_LSE_MISTAKES)
def test_row_lse_mistakes(changes, argument):
    query, key = inputs(3, 37, 64)
    with names(argument):
        row_lse(**({"query": query, "key": key, "query_start": 34} | changes))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        *ROW_LSE_MISTAKES,
        ({"key_range": None}, "key_range"),
        ({"key_range": 5}, "key_range"),
        ({"key_range": (1, 2, 3)}, "key_range"),
        ({"key_range": (0.0, 5.0)}, "key_range"),
        ({"key_range": (-1, 5)}, "key_range"),
        ({"key_range": (5, 5)}, "key_range"),
        ({"key_range": (5, 38)}, "key_range"),
        ({"key_range": "05"}, "key_range"),
        ({"lse": torch.zeros(2, 4, 4)}, "lse"),
        ({"lse": torch.zeros(2, 3, 4)}, "lse"),
        ({"lse": torch.zeros(2, 4, 3, dtype=torch.float16)}, "lse"),
        ({"lse": 0.0}, "lse"),
        ({"query_mask": torch.ones(2, 3)}, "query_mask"),
        ({"query_mask": torch.ones(2, 4, dtype=torch.bool)}, "query_mask"),
        ({"query_mask": [[True] * 3] * 2}, "query_mask"),
    ],
)
def test_column_sums_mistakes(changes, argument):
    query, key = inputs(3, 37, 64)
    with names(argument):
        column_sums(**({"query": query, "key": key, "query_start": 34, "key_range": (0, 30)} | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_nothing(dtype):
    """Scores are made in float32 on every backend, as `ops` says, also where a caller's own products are not."""
    query, key = inputs(3, 37, 64, dtype=dtype)
    where = {"query_start": 34, "key_range": (0, 30)}
    expected = column_sums(query, key, **where), row_lse(query, key, query_start=34)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = column_sums(query, key, **where), row_lse(query, key, query_start=34)
    assert all(a.dtype == torch.float32 and a.equal(b) for a, b in zip(actual, expected, strict=True))

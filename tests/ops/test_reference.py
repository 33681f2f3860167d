"""The operations on the reference backend, against definitions that share no code with it."""

import math

import brute_force
import pytest
import torch
from brute_force import ERRORS, assert_as_good_as_plain, names
from hypothesis import example, given
from hypothesis import strategies as st

from adatp_kernels import Stage
from adatp_kernels.ops import column_sums, gather, prune, row_lse, select

HALF = (torch.float16, torch.bfloat16)
# The reference computes in float32 what comes in half precision, so all dtypes meet float32's bound.
RELATIVE = 1e-5


def inputs(rows, columns, dim, *, heads=4, kv_heads=2, batch=2, dtype=torch.float32, seed=0):
    """Query and key whose softmax is uneven: logits have a standard deviation of about 2."""
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(batch, heads, rows, dim, generator=generator)
    return query.to(dtype), torch.randn(batch, kv_heads, columns, dim, generator=generator).to(dtype)


def left_padding(lengths, columns):
    return torch.tensor([[j >= n for j in range(columns)] for n in lengths])


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
    clean = column_sums(query, key, **where)
    dirty = query.masked_fill(~query_mask[:, None, :, None], poison)
    lse = row_lse(dirty, key, query_start=32) if with_lse else None
    assert column_sums(dirty, key, lse=lse, **where).equal(clean)


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


# Few distinct values, so that ties are the rule; zeros of both signs and everything that does not compare.
AWKWARD = [math.nan, math.inf, -math.inf, -0.0, 0.0, 0.25, 0.5, 0.5, 1.0, -1.0]


@st.composite
def selections(draw):
    """Arguments of `select` in which every batch row keeps equally many columns."""
    columns, num_segments = draw(st.integers(1, 24)), draw(st.integers(1, 4))
    ids = draw(st.lists(st.integers(-1, num_segments - 1), min_size=columns, max_size=columns))
    dedup = draw(st.sampled_from(["strict", "soft", "off"]))
    segments, positions, scores, candidates = [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.permutations(ids))  # as many columns are always kept in every row
        cells = draw(st.lists(st.integers(0, 5), min_size=columns, max_size=columns))
        fillable = sorted(
            {(s, p if dedup == "strict" else j) for j, (s, p) in enumerate(zip(row, cells, strict=True)) if s >= 0}
        )
        segments.append(row)
        positions.append(cells)
        scores.append(draw(st.lists(st.sampled_from(AWKWARD), min_size=columns, max_size=columns)))
        candidates.append(draw(st.permutations([s for s, _ in fillable])))
    kept = draw(st.integers(0, min(map(len, candidates))))
    budgets = [[slots[:kept].count(s) for s in range(num_segments)] for slots in candidates]
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    prior = draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 2.0, 3.0]), min_size=columns, max_size=columns))
    return {
        "scores": torch.tensor(scores, dtype=dtype),
        "segments": torch.tensor(segments),
        "positions": torch.tensor(positions),
        "budgets": budgets,
        "dedup": dedup,
        "soft_weight": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "prior": None if prior is None else torch.tensor(prior, dtype=dtype).expand(len(scores), -1),
    }


@given(selections())
@example(
    {
        "scores": torch.tensor([[1.0, 0.0, -0.0, 0.0, math.nan, -math.inf]]),
        "segments": torch.zeros(1, 6, dtype=torch.int64),
        "positions": torch.arange(6)[None],
        "budgets": [[3]],
        "dedup": "off",
        "soft_weight": 0.0,
        "prior": None,
    }
)
def test_select_is_the_definition(arguments):
    actual = select(**arguments)
    assert actual.dtype == torch.int64
    assert actual.tolist() == brute_force.select(**arguments)
    assert (actual.diff() > 0).all()  # ascending, and so unique
    assert select(**arguments, num_selected=actual.shape[1]).equal(actual)
    assert select(**arguments).equal(actual)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["strict", "soft", "off"]),
)
def test_select_on_real_valued_scores(seed, dtype, dedup):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high: torch.randint(high, (2, 60), generator=generator)  # noqa: E731
    arguments = {
        "scores": torch.rand(2, 60, dtype=dtype, generator=generator),
        "segments": draw(3),
        "positions": draw(9),
        "dedup": dedup,
        "soft_weight": 0.5,
        "prior": torch.rand(2, 60, dtype=dtype, generator=generator),
        "budgets": [[4, 2, 3], [3, 5, 1]],
    }
    assert select(**arguments).tolist() == brute_force.select(**arguments)


def selected(scores, segments=None, positions=None, **options):
    """One batch row through `select`; by default one segment of distinct positions."""
    columns = len(scores)
    segments = torch.zeros(columns, dtype=torch.int64) if segments is None else torch.tensor(segments)
    positions = torch.arange(columns) if positions is None else torch.tensor(positions)
    return select(torch.tensor([scores]), segments, positions, **options)[0].tolist()


def test_select_by_hand():
    scores, segments, positions = [0.1, 0.9, 0.5, 0.8, 0.7, 0.3], [0, 0, 0, 1, 1, -1], [0, 1, 1, 0, 0, 0]
    assert selected(scores, segments, positions, budgets=[1, 1]) == [1, 3, 5]
    assert selected(scores, segments, positions, budgets=[2, 1]) == [0, 1, 3, 5]  # 2 shares its position with 1
    assert selected(scores, segments, positions, budgets=[2, 2], dedup="off") == [1, 2, 3, 4, 5]
    soft = {"budgets": [2, 0], "dedup": "soft"}
    assert selected(scores, segments, positions, soft_weight=0.1, **soft) == [0, 1, 5]  # 0.5 · 0.1 < 0.1
    assert selected(scores, segments, positions, soft_weight=0.3, **soft) == [1, 2, 5]  # 0.5 · 0.3 > 0.1


def test_ties_go_to_the_smaller_index():
    assert selected([0.5, 0.7, 0.5, 0.5, 0.7], budgets=[3]) == [0, 1, 4]
    assert selected([0.0, -0.0, 0.0, -0.0], budgets=[2]) == [0, 1]
    assert selected([-0.0, 0.0], budgets=[1]) == [0]
    assert selected([0.5, 0.5, 0.2], positions=[3, 3, 1], budgets=[2]) == [0, 2]  # also among representatives


def test_nan_ranks_below_everything():
    nan, inf = math.nan, math.inf
    assert selected([nan, -inf, nan, inf, 0.0], budgets=[3]) == [1, 3, 4]
    assert selected([nan, -inf, nan, nan], budgets=[3]) == [0, 1, 2]
    assert selected([-nan, nan, -inf], positions=[0, 0, 0], budgets=[1]) == [2]  # nor does it represent a position
    assert selected([nan, 0.1], prior=torch.tensor([0.0, 1.0]), budgets=[1]) == [1]


def test_a_prior_of_zero_on_infinity_is_nan():
    assert selected([math.inf, -math.inf], prior=torch.tensor([0.0, 1.0]), budgets=[1]) == [1]


def test_the_prior_decides_representatives_too():
    scores, positions = [0.6, 0.5, 0.1], [4, 4, 0]
    assert selected(scores, positions=positions, budgets=[1]) == [0]
    assert selected(scores, positions=positions, prior=torch.tensor([1.0, 2.0, 1.0]), budgets=[1]) == [1]


def test_prior_of_any_float_dtype_multiplies_in_the_scores_dtype():
    for dtype in (*HALF, torch.float32, torch.float64):
        prior = torch.tensor([1.0, 4.0, 2.0], dtype=dtype)
        assert selected([0.4, 0.2, 0.3], prior=prior, budgets=[1]) == [1]


def test_always_kept_columns_cost_no_budget():
    assert selected([0.0, 1.0, 0.0, 0.5], [-1, 0, -1, 0], [0, 0, 0, 0], budgets=[1]) == [0, 1, 2]
    assert selected([0.0, 1.0, math.nan], [-1, 0, -1], budgets=[0]) == [0, 2]
    assert selected([0.0, 1.0], [-1, -1], budgets=[]) == [0, 1]


def test_segments_in_any_order():
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert selected(scores, [1, 0, 1, 0, 1, 0], budgets=[1, 2]) == [2, 4, 5]


def test_keeping_nothing_and_everything():
    assert selected([0.5, 0.1], budgets=[0]) == []
    assert selected([0.5, 0.1], budgets=[2]) == [0, 1]
    assert select(torch.ones(3, 5), torch.zeros(5).long(), torch.arange(5), [0]).shape == (3, 0)


def test_dense_and_shared_arguments_mean_the_same():
    scores = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    segments, positions = torch.arange(12) // 6, torch.arange(12) % 4
    expected = select(scores, segments.expand(2, -1), positions.expand(2, -1), torch.tensor([[3, 2], [3, 2]]))
    for budgets in ([3, 2], (3, 2), torch.tensor([3, 2], dtype=torch.int32), [[3, 2], [3, 2]]):
        assert select(scores, segments, positions, budgets).equal(expected)
    assert select(scores, segments.to(torch.int8), positions.to(torch.uint8), [3, 2]).equal(expected)
    prior = torch.rand(12)
    assert select(scores, segments, positions, [3, 2], prior=prior).equal(
        select(scores, segments, positions, [3, 2], prior=prior.expand(2, -1))
    )


def test_select_of_strided_scores():
    scores = torch.rand(2, 24, generator=torch.Generator().manual_seed(0))
    segments, positions = torch.arange(12) // 6, torch.arange(12) % 6
    assert select(scores[:, ::2], segments, positions, [3, 2]).equal(
        select(scores[:, ::2].contiguous(), segments, positions, [3, 2])
    )
    assert select(scores.T[:12].T, segments, positions, [3, 2]).equal(
        select(scores[:, :12], segments, positions, [3, 2])
    )


def test_select_leaves_its_arguments_alone():
    scores, segments, positions = torch.rand(1, 6), torch.tensor([0, 0, 1, -1, 1, 1]), torch.tensor([0, 0, 1, 1, 2, 1])
    before = [t.clone() for t in (scores, segments, positions)]
    select(scores, segments, positions, [1, 2], dedup="soft", soft_weight=0.5, prior=torch.rand(6))
    assert all(now.equal(then) for now, then in zip((scores, segments, positions), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"scores": [[0.1] * 6]}, "scores"),
        ({"scores": torch.ones(2, 6, dtype=torch.float16)}, "scores"),
        ({"scores": torch.ones(6)}, "scores"),
        ({"scores": torch.ones(2, 0)}, "scores"),
        ({"segments": [0, 0, 0, 1, 1, 1]}, "segments"),
        ({"segments": torch.zeros(2, 6)}, "segments"),
        ({"segments": torch.zeros(5, dtype=torch.int64)}, "segments"),
        ({"segments": torch.zeros(1, 6, dtype=torch.int64)}, "segments"),
        ({"segments": torch.tensor([0, 0, 0, 1, 1, 2])}, "segments"),
        ({"segments": torch.tensor([0, 0, 0, 1, 1, -2])}, "segments"),
        ({"segments": torch.zeros(6, dtype=torch.int64, device="meta")}, "segments"),
        ({"positions": None}, "positions"),
        ({"positions": torch.zeros(6, dtype=torch.bool)}, "positions"),
        ({"positions": torch.zeros(2, 7, dtype=torch.int64)}, "positions"),
        ({"budgets": None}, "budgets"),
        ({"budgets": "ab"}, "budgets"),
        ({"budgets": 3}, "budgets"),
        ({"budgets": [0.5, 0.5]}, "budgets"),
        ({"budgets": [True, True]}, "budgets"),
        ({"budgets": [-1, 2]}, "budgets"),
        ({"budgets": [4, 1]}, "budgets"),
        ({"budgets": [[1, 1]]}, "budgets"),
        ({"budgets": [[1, 1], [1, 2]]}, "budgets"),
        ({"budgets": [[1], [1, 2]]}, "budgets"),
        ({"budgets": [3, 1], "positions": torch.zeros(6, dtype=torch.int64)}, "budgets"),
        ({"dedup": "hard"}, "dedup"),
        ({"dedup": None}, "dedup"),
        ({"soft_weight": 1.5}, "soft_weight"),
        ({"soft_weight": "1"}, "soft_weight"),
        ({"prior": [1.0] * 6}, "prior"),
        ({"prior": torch.ones(6, dtype=torch.int64)}, "prior"),
        ({"prior": torch.ones(5)}, "prior"),
        ({"prior": torch.ones(2, 5)}, "prior"),
        ({"num_selected": -1}, "num_selected"),
        ({"num_selected": 7}, "num_selected"),
        ({"num_selected": 2.0}, "num_selected"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_select_mistakes(changes, argument):
    good = {
        "scores": torch.ones(2, 6),
        "segments": torch.arange(6) // 3,
        "positions": torch.arange(6),
        "budgets": [1, 2],
    }
    select(**good)
    with names(argument):
        select(**(good | changes))


def test_an_unfillable_budget_is_explained():
    with pytest.raises(ValueError, match=r"segment 1 of batch row 0 has 2 distinct positions, fewer than its budget 3"):
        selected([0.1] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 0, 1], budgets=[1, 3])
    with pytest.raises(ValueError, match=r"equally many columns, got \[3, 2\]"):
        select(torch.ones(2, 4), torch.zeros(4).long(), torch.arange(4), [[3], [2]])


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
DTYPES += [torch.complex64, torch.float8_e4m3fn]


def counted(*shape, dtype=torch.float32):
    return torch.arange(math.prod(shape)).reshape(shape).to(dtype)


def picked(tensor, indices, batch, token):
    """What `gather` is to return, one batch row at a time."""
    rows = []
    for b, row in enumerate(indices.tolist()):
        source = tensor.narrow(batch, b if tensor.shape[batch] > 1 else 0, 1)
        pieces = [source.narrow(token, i, 1) for i in row]
        rows.append(torch.cat(pieces, token) if row else source.narrow(token, 0, 0))
    return torch.cat(rows, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_gather_of_any_dtype(batch, dtype):
    tensor = counted(batch, 5, 2, dtype=dtype)
    indices = torch.tensor([[0, 2, 4], [1, 2, 3], [4, 4, 0]])[:batch]
    (moved,) = gather(indices, tensor, dims=1)
    assert moved.dtype == dtype
    assert moved.view(torch.uint8).equal(picked(tensor.view(torch.uint8), indices, 0, 1))


@pytest.mark.parametrize(
    ("shape", "dims", "batch", "token"),
    [
        ((3, 5), 1, 0, 1),
        ((3, 5), -1, 0, 1),
        ((3, 5, 4), 1, 0, 1),
        ((3, 2, 5, 4), 2, 0, 2),
        ((3, 2, 5, 4), -2, 0, 2),
        ((2, 3, 5), (1, 2), 1, 2),
        ((2, 3, 5), (-2, -1), 1, 2),
        ((5, 3), (1, 0), 1, 0),
        ((5, 2, 3, 4), (2, 0), 2, 0),
        ((1, 5, 4), 1, 0, 1),  # one for all rows
        ((2, 1, 5), (1, 2), 1, 2),
        ((5, 1), (1, 0), 1, 0),
    ],
)
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_gather_along_any_dimension(shape, dims, batch, token, kept):
    tensor = counted(*shape)
    indices = torch.tensor([[0, 2, 4], [1, 2, 3], [0, 1, 4]])[:, :kept]
    (moved,) = gather(indices, tensor, dims=[dims])
    assert moved.is_contiguous()
    assert moved.equal(picked(tensor, indices, batch, token))


@pytest.mark.parametrize(
    ("shape", "token"), [((1, 5), 1), ((1, 2, 5, 4), 2), ((5,), 0), ((5, 7), 0), ((3, 1, 5), -1), ((3, 2, 5), 2)]
)
@pytest.mark.parametrize("kept", [0, 3])
def test_one_batch_row_serves_any_tensor(shape, token, kept):
    tensor, indices = counted(*shape), torch.tensor([[0, 2, 4]])[:, :kept]
    (moved,) = gather(indices, tensor, dims=token)
    assert moved.is_contiguous()
    assert moved.equal(tensor.index_select(token, indices[0]))


@pytest.mark.parametrize("batch", [1, 2])
def test_gather_moves_all_tensors_together(batch):
    indices = torch.tensor([[1, 3], [0, 4]])[:batch]
    hidden, cos, ids = counted(batch, 5, 3), counted(1, 5, 2), counted(3, batch, 5, dtype=torch.int64)
    moved = gather(indices, hidden, cos, ids, dims=(1, -2, (1, 2)))
    for got, (tensor, axes) in zip(moved, [(hidden, (0, 1)), (cos, (0, 1)), (ids, (1, 2))], strict=True):
        assert got.equal(picked(tensor, indices, *axes))
    assert gather(indices, dims=1) == ()


@pytest.mark.parametrize("batch", [1, 2])
def test_gather_of_strided_views(batch):
    indices = torch.tensor([[1, 3, 4], [0, 2, 4]])[:batch]
    base = counted(2 * batch, 10, 4, 6)
    for view in (
        base[::2, ::2],
        base[:batch, 5:, ::3],
        base[:batch].transpose(1, 2)[:, :, :5].transpose(1, 2),
        base[:1, :5].expand(batch, -1, -1, -1),
    ):
        (moved,) = gather(indices, view, dims=1)
        assert moved.is_contiguous()
        assert moved.equal(picked(view, indices, 0, 1))
    (moved,) = gather(indices[:, ::2], base[:batch], dims=1)
    assert moved.equal(picked(base[:batch], indices[:, ::2], 0, 1))


def test_gather_returns_copies():
    tensor = counted(1, 4, 2)
    (moved,) = gather(torch.tensor([[0, 1, 2, 3]]), tensor, dims=1)
    moved.zero_()
    assert tensor.sum() > 0


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"indices": [[0, 1], [2, 3]]}, "indices"),
        ({"indices": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)}, "indices"),
        ({"indices": torch.tensor([0, 1])}, "indices"),
        ({"indices": torch.tensor([[0, 1], [2, 5]])}, "indices"),
        ({"indices": torch.tensor([[0, 1], [2, -1]])}, "indices"),
        ({"tensor": None}, "tensors"),
        ({"tensor": [[1.0]]}, "tensors"),
        ({"tensor": torch.ones(3, 5)}, "tensors"),
        ({"tensor": torch.ones(2, 5, device="meta")}, "tensors"),
        ({"dims": None}, "dims"),
        ({"dims": 1.0}, "dims"),
        ({"dims": True}, "dims"),
        ({"dims": []}, "dims"),
        ({"dims": [1, 1]}, "dims"),
        ({"dims": [(0, 1, 2)]}, "dims"),
        ({"dims": ["1"]}, "dims"),
        ({"dims": [None]}, "dims"),
        ({"dims": 3}, "dims"),
        ({"dims": -4}, "dims"),
        ({"dims": 0}, "dims"),
        ({"dims": [(1, 1)]}, "dims"),
        ({"tensor": torch.tensor(1.0), "dims": 0}, "dims"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_gather_mistakes(changes, argument):
    options = {"indices": torch.tensor([[0, 1], [2, 3]]), "tensor": torch.ones(2, 5, 3), "dims": 1} | changes
    with names(argument):
        gather(options.pop("indices"), options.pop("tensor"), **options)


def prune_arguments(batch=2, older=0):
    """Two text tokens, eight visual ones in columns 2 to 9 with a timestamp at 6, three text tokens."""
    query, key = inputs(3, 14 + older, 64, batch=batch)
    row = torch.tensor([0, 0, 0, 0, -1, 1, 1, 1, 1])
    return {
        "query": query,
        "key": key,
        "tensors": [counted(batch, 14, 2), counted(3, batch, 14), counted(1, 14)],
        "stage": Stage(1, (2, 1), 3),
        "dims": [1, (1, 2), -1],
        "segments": row.expand(batch, -1),
        "positions": torch.tensor([0, 1, 0, 1, 0, 0, 1, 0, 1]),
        "query_start": older + 11,
        "key_range": (older + 2, older + 11),
        "sequence_start": older,
    }


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("older", [0, 7])
def test_prune_is_its_three_operations(batch, older):
    arguments = prune_arguments(batch, older)
    phases = []
    indices, moved = prune(**arguments, on_phase=phases.append)
    scoring = {name: arguments[name] for name in ("query", "key", "query_start", "key_range")}
    scores = brute_force.column_sums(**scoring)
    positions = arguments["positions"].expand(batch, -1)
    columns = brute_force.select(scores, arguments["segments"], positions, [(2, 1)] * batch)
    assert indices.tolist() == [[0, 1, *(j + 2 for j in row), 11, 12, 13] for row in columns]
    assert phases == ["score", "select", "compact"]
    for got, tensor, axes in zip(moved, arguments["tensors"], [(0, 1), (1, 2), (0, 1)], strict=True):
        assert got.equal(picked(tensor, indices, *axes))
    again, _ = prune(**arguments, budgets=torch.tensor([2, 1]), num_selected=4)
    assert again.equal(indices)


def test_prune_passes_every_option_on():
    arguments = prune_arguments()
    key_mask = left_padding([0, 4], 14)
    query_mask = torch.tensor([[True, False, True], [False, True, True]])
    prior = torch.rand(9, generator=torch.Generator().manual_seed(5))
    options = {"dedup": "soft", "soft_weight": 0.4, "prior": prior}
    indices, _ = prune(**arguments, scale=0.3, key_mask=key_mask, query_mask=query_mask, **options)
    scoring = {name: arguments[name] for name in ("query", "key", "query_start", "key_range")}
    scores = brute_force.column_sums(**scoring, scale=0.3, key_mask=key_mask, query_mask=query_mask)
    columns = brute_force.select(
        scores, arguments["segments"], arguments["positions"].expand(2, -1), [(2, 1)] * 2, **options
    )
    assert indices.tolist() == [[0, 1, *(j + 2 for j in row), 11, 12, 13] for row in columns]


def test_prune_reads_the_lse_it_is_given():
    arguments = prune_arguments()
    lse = row_lse(arguments["query"], arguments["key"], query_start=11)
    indices, _ = prune(**arguments)
    assert prune(**arguments, lse=lse)[0].equal(indices)
    # An LSE of +inf makes every score 0; all ties go to the smaller index.
    blind, _ = prune(**arguments, lse=torch.full_like(lse, math.inf))
    assert blind.tolist() == [[0, 1, 2, 3, 6, 7, 11, 12, 13]] * 2


def test_prune_takes_scores_instead_of_the_attentions():
    arguments = prune_arguments()
    scores = torch.arange(18.0).reshape(2, 9)
    arguments["query"] = torch.full_like(arguments["query"], math.nan)  # not read
    indices, _ = prune(**arguments, scores=scores)
    assert indices.tolist() == [[0, 1, 4, 5, 6, 10, 11, 12, 13]] * 2


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"query": None}, "query"),
        ({"key": torch.ones(2, 2, 14, 32)}, "key"),
        ({"tensors": None}, "tensors"),
        ({"tensors": 5}, "tensors"),
        ({"tensors": [torch.ones(2, 13), torch.ones(2, 14), torch.ones(2, 14)], "dims": 1}, "tensors"),
        ({"tensors": [torch.ones(2, 14), None, torch.ones(2, 14)], "dims": 1}, "tensors"),
        ({"stage": None}, "stage"),
        ({"stage": (2, 1)}, "stage"),
        ({"stage": Stage(1, (5, 1), 6)}, "budgets"),
        ({"dims": [1]}, "dims"),
        ({"dims": None}, "dims"),
        ({"segments": None}, "segments"),
        ({"segments": torch.zeros(2, 8, dtype=torch.int64)}, "segments"),
        ({"segments": torch.full((9,), 2)}, "segments"),
        ({"positions": torch.zeros(9)}, "positions"),
        ({"query_start": -1}, "query_start"),
        ({"key_range": (2, 15)}, "key_range"),
        ({"key_range": None}, "key_range"),
        ({"sequence_start": 3}, "sequence_start"),
        ({"sequence_start": -1}, "sequence_start"),
        ({"sequence_start": 0.0}, "sequence_start"),
        ({"scale": 0}, "scale"),
        ({"lse": torch.zeros(2, 4, 14)}, "lse"),
        ({"key_mask": torch.ones(2, 13, dtype=torch.bool)}, "key_mask"),
        ({"query_mask": torch.ones(2, 14, dtype=torch.bool)}, "query_mask"),
        ({"scores": torch.ones(2, 8)}, "scores"),
        ({"scores": torch.ones(2, 9, dtype=torch.int64)}, "scores"),
        ({"scores": [[0.0] * 9] * 2}, "scores"),
        ({"dedup": "hard"}, "dedup"),
        ({"soft_weight": 2}, "soft_weight"),
        ({"prior": torch.ones(8)}, "prior"),
        ({"budgets": [1.0, 2.0]}, "budgets"),
        ({"num_selected": -1}, "num_selected"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_prune_mistakes(changes, argument):
    with names(argument):
        prune(**(prune_arguments() | changes))


def test_prune_on_the_meta_device_reads_no_data():
    arguments = prune_arguments()
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    meta["tensors"] = [tensor.to("meta") for tensor in arguments["tensors"]]
    for dedup in ("strict", "soft", "off"):
        for prior in (None, torch.ones(9, device="meta")):
            indices, moved = prune(
                **meta,
                dedup=dedup,
                prior=prior,
                budgets=torch.ones(2, dtype=torch.int64, device="meta"),
                num_selected=4,
            )
            assert indices.shape == (2, 9)
            assert [tuple(tensor.shape) for tensor in moved] == [(2, 9, 2), (3, 2, 9), (2, 9)]


def test_counting_needs_the_data():
    # The opposite of the test above: without num_selected, select has to read.
    with pytest.raises(ERRORS):
        select(torch.ones(1, 4, device="meta"), *torch.zeros(2, 1, 4, dtype=torch.int64, device="meta"), [1])

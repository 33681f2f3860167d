"""select on the reference backend, against a definition by plain Python sorting."""

import math

import brute_force
import pytest
import torch
from brute_force import ERRORS, names
from hypothesis import example, given
from hypothesis import strategies as st
from op_inputs import HALF

from adatp_kernels.ops import select

pytestmark = pytest.mark.usefixtures("backend_of_auto")

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


RANGES = torch.tensor([[0, 3, 0], [3, 6, 1]])


def known(ranges, longest):
    return {"segment_ranges": ranges, "longest_segment": longest}


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
        (known(RANGES, None), "segment_ranges, longest_segment"),
        (known(None, 3), "segment_ranges, longest_segment"),
        (known([[0, 3, 0], [3, 6, 1]], 3), "segment_ranges"),
        (known(RANGES.float(), 3), "segment_ranges"),
        (known(RANGES[:1], 3), "segment_ranges"),
        (known(RANGES[None], 3), "segment_ranges"),
        (known(RANGES, 2), "longest_segment"),
        (known(RANGES, 0), "longest_segment"),
        (known(torch.tensor([[0, 3, 0], [3, 5, 1]]), 3), "segment_ranges"),
        (known(torch.tensor([[0, 2, 0], [3, 6, 1]]), 3), "segment_ranges"),
        (known(torch.tensor([[0, 4, 0], [4, 6, 1]]), 4), "segment_ranges"),
        (known(torch.tensor([[0, 3, 0], [3, 6, 2]]), 3), "segment_ranges"),
        (known(torch.tensor([[0, 3, 0], [3, 7, 1]]), 4), "segment_ranges"),
    ],
)
def test_select_mistakes(changes, argument):
    good = {
        "scores": torch.ones(2, 6),
        "segments": torch.arange(6) // 3,
        "positions": torch.arange(6),
        "budgets": [1, 2],
    }
    assert select(**good).equal(select(**good, **known(RANGES, 3)))
    with names(argument):
        select(**(good | changes))


def test_an_unfillable_budget_is_explained():
    with pytest.raises(ValueError, match=r"segment 1 of batch row 0 has 2 distinct positions, fewer than its budget 3"):
        selected([0.1] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 0, 1], budgets=[1, 3])
    with pytest.raises(ValueError, match=r"equally many columns, got \[3, 2\]"):
        select(torch.ones(2, 4), torch.zeros(4).long(), torch.arange(4), [[3], [2]])


def test_counting_needs_the_data():
    # The opposite of the test above: without num_selected, select has to read.
    with pytest.raises(ERRORS):
        select(torch.ones(1, 4, device="meta"), *torch.zeros(2, 1, 4, dtype=torch.int64, device="meta"), [1])

"""Which tokens the pruner keeps, for scores written out by hand."""

import math

import pytest
import torch
from pruner_inputs import FLAT, STAMPED, half, kept_of, pruner_of, scripted

from adatp_kernels import AdaTPConfig, VisualLayout


def test_text_rows_score_or_the_last_alone():
    rows = [[9.0, 9, 9, 9, 0, 0, 0, 0], [9.0, 9, 9, 9, 0, 0, 0, 0], [0.0, 0, 0, 0, 8, 8, 8, 8]]
    assert kept_of(half(queries="last"), rows, length=12, rows=3) == [4, 5, 6, 7]
    assert kept_of(half(queries="text"), rows, length=12, rows=3) == [0, 1, 2, 3]


def test_text_before_the_video_does_not_score():
    pruner = pruner_of(half())
    layout = VisualLayout.grid(1, 8, start=3)
    state = pruner.begin(layout, 12, segments=torch.tensor([0]))
    query, key = scripted([0.0, 0, 0, 0, 5, 5, 5, 5], 12, 3)
    query[:, :, :11] = math.nan  # no row but the text after the video is read
    assert pruner(state, query, key, (), dims=1, scale=1.0)[0].kept.tolist() == [[0, 1, 2, 7, 8, 9, 10, 11]]


def test_deduplication_keeps_one_token_a_position():
    layout = VisualLayout.grid(2, 4, start=1)
    scores = [9.0, 1, 8, 1, 7, 6, 1, 2]
    assert kept_of(half(spatial_dedup="off"), scores, layout=layout, segments=[0, 0]) == [0, 2, 4, 5]
    assert kept_of(half(), scores, layout=layout, segments=[0, 0]) == [0, 2, 5, 7]
    assert kept_of(half(), scores, layout=layout, segments=[0, 1]) == [0, 2, 4, 5]


def test_no_segment_starves_another():
    scores = [1.0, 2, 3, 4, 9, 9, 9, 9]  # attention piles up at the end
    layout = VisualLayout.grid(2, 4, start=1)
    assert kept_of(half(), scores, layout=layout, segments=[0, 1]) == [2, 3, 4, 5]


def test_features_find_the_segments():
    layout = VisualLayout.grid(2, 4, start=1)
    same, different = torch.ones(2, 3), torch.eye(2)
    scores = [1.0, 2, 3, 4, 9, 9, 9, 9]
    pruner = pruner_of(half(spatial_dedup="off"))
    for features, segments, wanted in ((same, [0, 0], [5, 6, 7, 8]), (different, [0, 1], [3, 4, 5, 6])):
        state = pruner.begin(layout, 10, features=features)
        assert state.segments_per_frame.tolist() == segments
        following, _ = pruner(state, *scripted(scores, 10, 1), (), dims=1, scale=1.0)
        assert following.kept.tolist() == [[0, *wanted, 9]]


def test_the_prior_multiplies_the_scores():
    layout = VisualLayout.grid(2, 4, start=1)
    scores = [0.0] * 8
    plain = kept_of(half(spatial_dedup="off"), scores, layout=layout, segments=[0, 0])
    assert plain == [0, 1, 2, 3]
    prior = torch.tensor([[1.0, 1.0, 3.0, 1.0], [1.0, 2.0, 1.0, 5.0]])
    for table in (prior, prior.half(), torch.cat([prior, torch.full((2, 3), 99.0)], dim=1)):  # longer is fine
        assert kept_of(half(spatial_dedup="off"), scores, layout=layout, segments=[0, 0], prior=table) == [0, 2, 5, 7]
    # e³ ≈ 20: attention outweighs a factor of 5.
    assert kept_of(
        half(spatial_dedup="off"), [3.0, 3, 0, 3, 3, 0, 0, 0], layout=layout, segments=[0, 0], prior=prior
    ) == [0, 1, 3, 4]


def test_the_prior_travels_with_its_tokens():
    config = AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25), spatial_dedup="off")
    pruner = pruner_of(config)
    prior = torch.tensor([[1.0, 1, 3, 1, 1, 2, 1, 5]])
    state = pruner.begin(FLAT, 10, segments=torch.tensor([0]), prior=prior)
    state, _ = pruner(state, *scripted([0.0] * 8, 10, 1), (), dims=1, scale=1.0)
    assert state.kept.tolist() == [[0, 1, 3, 6, 8, 9]]
    state, _ = pruner(state, *scripted([0.0] * 4, 6, 1), (), dims=1, scale=1.0)
    assert state.kept.tolist() == [[0, 3, 8, 9]]


@pytest.mark.parametrize("count", range(1, 8))
def test_uniform_is_an_even_stride(count):
    config = AdaTPConfig(target_flops=None, stages=(1,), schedule=(count / 8,), score="uniform", spatial_dedup="off")
    kept = kept_of(config, [0.0] * 8)
    assert len(kept) == count
    gaps = torch.tensor([kept[-1] - 8, *kept]).diff()
    assert gaps.max() - gaps.min() <= 1
    if 8 % count == 0:
        assert kept == list(range(8 // count - 1, 8, 8 // count))


def test_uniform_steps_over_text_between_frames():
    config = AdaTPConfig(
        target_flops=None, stages=(1,), schedule=(0.5,), score="uniform", spatial_dedup="off", segment_threshold=-1.0
    )
    pruner = pruner_of(config)
    state = pruner.begin(STAMPED, 62, features=torch.randn(6, 3))
    following, _ = pruner(state, torch.ones(1, 1, 62, 8), torch.ones(1, 1, 62, 8), (), dims=1)
    visual = STAMPED.index.tolist()
    assert [j for j in following.kept[0].tolist() if j in visual] == visual[1::2]
    assert following.length == 62 - 24


def test_random_is_drawn_from_the_seed():
    def draw(seed, score="random"):
        return kept_of(half(score=score, seed=seed, spatial_dedup="off"), [9.0] * 4 + [0.0] * 4)

    assert draw(0, "attention") == [0, 1, 2, 3]
    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_random_is_drawn_in_float32_whatever_the_default(dtype):
    """Backends read the scores as what they are said to be."""
    draw = lambda: kept_of(half(score="random", spatial_dedup="off"), [0.0] * 8)  # noqa: E731
    expected = draw()
    try:
        torch.set_default_dtype(dtype)
        state = pruner_of(half(score="random")).begin(FLAT, 10, segments=torch.tensor([0]))
        assert state._scores.dtype == torch.float32
        assert draw() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_random_batch_rows_and_stages_differ():
    layout = VisualLayout.grid(1, 64, start=1)
    config = AdaTPConfig(target_flops=None, stages=(1, 2), schedule=(0.5, 0.25), score="random", spatial_dedup="off")
    pruner = pruner_of(config)
    state = pruner.begin(layout, 66, segments=torch.tensor([0]), batch_size=2)
    one, _ = pruner(state, torch.ones(2, 1, 66, 8), torch.ones(2, 1, 66, 8), (), dims=1)
    two, _ = pruner(one, torch.ones(2, 1, 34, 8), torch.ones(2, 1, 34, 8), (), dims=1)
    assert not one.kept[0].equal(one.kept[1])
    for row in range(2):
        assert set(two.kept[row].tolist()) < set(one.kept[row].tolist())


@pytest.mark.parametrize("score", ["random", "uniform"])
def test_baselines_need_no_text_after_the_video(score):
    config = AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.5,), score=score)
    pruner = pruner_of(config)
    state = pruner.begin(FLAT, 9, segments=torch.tensor([0]))
    following, _ = pruner(state, torch.ones(1, 1, 9, 8), torch.ones(1, 1, 9, 8), (), dims=1)
    assert following.length == 5

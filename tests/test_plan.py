import dataclasses
import math

import pytest
import torch
from brute_force import names
from hypothesis import example, given, reject
from hypothesis import strategies as st

from adatp_kernels import AdaTPConfig, PruningPlan, Stage, VisualLayout, make_plan, visual_flops
from adatp_kernels.allocation import allocate
from adatp_kernels.plan import flops_ratio, make_plans

LLAVA = {"hidden_size": 3584, "key_width": 512, "mlp_width": 18944}
SMALL = {"hidden_size": 64, "key_width": 32, "mlp_width": 256}


def plan_of(config, frames, cells, segments=None, salient=None, *, num_layers=28, decoder=LLAVA):
    segments = torch.arange(frames) if segments is None else torch.as_tensor(segments)
    return make_plan(config, VisualLayout.grid(frames, cells, 14), segments, salient, num_layers=num_layers, **decoder)


@pytest.mark.parametrize(("tokens", "tera"), [(6272, 48.82), (11648, 103.24)])
def test_visual_flops_of_llava_onevision_7b(tokens, tera):
    assert 28 * visual_flops(tokens, **LLAVA) / 1e12 == pytest.approx(tera, abs=0.005)


def test_visual_flops_is_the_formula():
    n, d, k, m = 5, 7, 11, 13
    assert (
        visual_flops(n, hidden_size=d, key_width=k, mlp_width=m)
        == 2 * n * d * k + 2 * n * d * d + 2 * n * n * d + 3 * n * d * m
    )
    assert visual_flops(0, **LLAVA) == 0


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"tokens": -1}, "tokens"),
        ({"tokens": float("nan")}, "tokens"),
        ({"tokens": "5"}, "tokens"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"key_width": 0}, "key_width"),
        ({"key_width": None}, "key_width"),
        ({"mlp_width": -5}, "mlp_width"),
        ({"mlp_width": True}, "mlp_width"),
    ],
)
def test_visual_flops_mistakes(changes, argument):
    with names(argument):
        visual_flops(**({"tokens": 5, **LLAVA} | changes))


@pytest.mark.parametrize(("frames", "cells", "left", "alpha"), [(32, 196, 563, 0.8516), (64, 182, 1202, 0.8595)])
def test_progressive_plan_of_llava(frames, cells, left, alpha):
    plan = plan_of(AdaTPConfig(target_flops=0.273), frames, cells)
    assert [stage.layer for stage in plan.stages] == list(range(1, 16))
    assert plan.stages[-1].total == left
    assert plan.alpha == pytest.approx(alpha, abs=5e-5)
    assert plan.flops_ratio == pytest.approx(0.273, abs=0.001)
    assert [stage.total for stage in plan.stages] == [
        math.floor(frames * cells * plan.alpha**i + 0.5) for i in range(1, 16)
    ]
    assert not plan.capped


@pytest.mark.parametrize("target", [0.15, 0.273, 0.5, 0.9])
@pytest.mark.parametrize("schedule", ["geometric", "linear"])
@pytest.mark.parametrize("stages", ["progressive", "single", "three", (0, 3)])
@pytest.mark.parametrize("decoder", [LLAVA, SMALL])
def test_the_plan_meets_its_target(stages, schedule, target, decoder):
    config = AdaTPConfig(target_flops=target, stages=stages, schedule=schedule)
    # With α = 0 one token is left; before the first stage, and on the straight line to the last, there are more.
    layers = config.stage_layers(28)
    shares = {n: 1 - (i + 1) / len(layers) if schedule == "linear" else 0 for i, n in enumerate(layers)}
    least, share = [], 1.0
    for layer in range(28):
        least.append(max(1, 6272 * share))
        share = shares.get(layer, share)
    if flops_ratio(least, **decoder) > target + 0.005:
        with pytest.raises(ValueError, match="^target_flops: .* cannot be reached"):
            plan_of(config, 32, 196, decoder=decoder)
        return
    plan = plan_of(config, 32, 196, decoder=decoder)
    assert abs(plan.flops_ratio - target) <= 0.005
    assert not plan.capped
    assert f"target {target:.3f}" in plan.describe()
    assert "caps" not in plan.describe()


def test_flops_ratio_is_that_of_the_tokens_per_layer():
    plan = plan_of(AdaTPConfig(), 8, 49)
    cost = [visual_flops(n, **LLAVA) for n in plan.tokens_per_layer]
    assert plan.flops_ratio == pytest.approx(sum(cost) / (28 * cost[0]))
    assert flops_ratio(plan.tokens_per_layer, **LLAVA) == plan.flops_ratio


def test_a_stage_drops_before_the_next_layer():
    plan = plan_of(AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25)), 4, 10, num_layers=6)
    assert plan.tokens_per_layer == (40, 40, 20, 20, 10, 10)
    assert [(stage.layer, stage.total) for stage in plan.stages] == [(1, 20), (3, 10)]
    assert (plan.alpha, plan.target_flops) == (None, None)
    assert "explicit schedule" in plan.describe()
    assert "40 → 10 visual tokens in 2 stages" in plan.describe()


def test_linear_schedule_is_a_straight_line():
    plan = plan_of(AdaTPConfig(stages=(0, 1, 2, 3), schedule="linear", target_flops=0.5), 10, 100, num_layers=8)
    steps = torch.tensor([1000, *(stage.total for stage in plan.stages)]).diff()
    assert steps.max() - steps.min() <= 1
    assert plan.stages[-1].total == pytest.approx(1000 * plan.alpha, abs=0.5 + 1e-6)


def test_an_explicit_schedule_may_drop_everything():
    plan = plan_of(AdaTPConfig(target_flops=None, stages=(0, 1), schedule=(0.1, 0.0)), 2, 4, num_layers=4)
    assert [stage.budgets for stage in plan.stages] == [(1, 0), (0, 0)]


def test_a_solved_schedule_keeps_at_least_one_token():
    # Layer 0 alone costs a third, which is within the tolerance.
    plan = plan_of(AdaTPConfig(target_flops=0.33, stages=(0,)), 32, 196, num_layers=3)
    assert plan.stages[0].total == 1


def test_few_tokens_keep_one_whatever_it_costs():
    """That is no reason to refuse; what it costs is said."""
    plan = plan_of(AdaTPConfig(target_flops=0.13), 1, 2)
    assert {stage.total for stage in plan.stages} == {1}
    assert plan.flops_ratio > 0.5 and "0.536 of the FLOPs (target 0.130)" in plan.describe()


def test_no_segment_grows_from_stage_to_stage():
    # Largest remainders alone share 11 out as 5, 5, 1 and 10 as 4, 4, 2.
    config = AdaTPConfig(target_flops=None, stages=(0, 1), schedule=(11 / 14, 10 / 14), spatial_dedup="off")
    plan = plan_of(config, 14, 1, segments=[0] * 6 + [1] * 6 + [2] * 2)
    assert [stage.budgets for stage in plan.stages] == [(5, 5, 1), (5, 4, 1)]


def test_target_of_one_prunes_nothing():
    plan = plan_of(AdaTPConfig(target_flops=1.0), 4, 49)
    assert set(plan.tokens_per_layer) == {196}
    assert (plan.flops_ratio, plan.capped) == (1.0, False)


def test_a_prompt_with_too_few_tokens_to_drop_any_passes_through():
    # algorithm.md: "A prompt … of which the plan drops none, passes through unpruned."
    plan = plan_of(AdaTPConfig(), 1, 1)
    assert set(plan.tokens_per_layer) == {1}


def test_unreachable_target_says_what_the_least_is():
    with pytest.raises(ValueError, match=r"^target_flops: 0\.1 .*least is 0\.5"):
        plan_of(AdaTPConfig(target_flops=0.1, stages=(13,)), 8, 49)


def test_caps_of_strict_deduplication():
    # One segment of eight frames of 49 cells keeps 49 at most, whatever the target.
    plan = plan_of(AdaTPConfig(target_flops=0.9), 8, 49, segments=[0] * 8)
    assert plan.capped
    assert plan.flops_ratio < 0.9 - 0.005
    assert all(stage.budgets == (49,) and stage.total == 49 for stage in plan.stages)
    assert "caps the segments, so less is kept" in plan.describe()


@pytest.mark.parametrize("dedup", ["soft", "off"])
def test_no_caps_without_strict_deduplication(dedup):
    plan = plan_of(AdaTPConfig(target_flops=0.9, spatial_dedup=dedup), 8, 49, segments=[0] * 8)
    assert not plan.capped
    assert abs(plan.flops_ratio - 0.9) <= 0.005


def test_the_cap_counts_the_positions_that_occur():
    # Segment 0 holds positions {5, 7} over two frames, segment 1 {0, 1, 2} and a repeated 1.
    layout = VisualLayout(range(8), [0, 0, 1, 1, 2, 2, 2, 2], [5, 7, 7, 5, 0, 1, 2, 1])
    config = AdaTPConfig(target_flops=1.0, stages=(0,))
    assert make_plan(config, layout, torch.tensor([0, 0, 1]), num_layers=4, **SMALL).stages[0].budgets == (2, 3)


def test_salient_segments_keep_twice_as_much():
    salient = torch.tensor([False, True, False, False])
    config = AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.2,))
    assert plan_of(config, 4, 100, salient=salient).stages[0].budgets == (16, 32, 16, 16)
    boosted = dataclasses.replace(config, salient_boost=5.0)
    assert plan_of(boosted, 4, 100, salient=salient.tolist()).stages[0].budgets == (10, 50, 10, 10)


def test_larger_segments_keep_more():
    config = AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.1,), spatial_dedup="off")
    assert plan_of(config, 4, 100, segments=[0, 1, 1, 1]).stages[0].budgets == (10, 30)


@st.composite
def plans(draw):
    """A plan, with what it was made from."""
    frames, cells = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    segments = torch.tensor([0, *draw(st.lists(st.integers(0, 1), min_size=frames - 1, max_size=frames - 1))]).cumsum(0)
    count = int(segments[-1]) + 1
    salient = draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count).map(torch.tensor))
    config = AdaTPConfig(
        target_flops=draw(st.floats(0.26, 1.0)),
        stages=(0, 1, 3),
        schedule=draw(st.sampled_from(["geometric", "linear"])),
        spatial_dedup=draw(st.sampled_from(["strict", "soft", "off"])),
        salient_boost=draw(st.sampled_from([1.0, 1.3, 2.0, 10.0])),
    )
    try:
        return (
            config,
            cells,
            segments,
            salient,
            plan_of(config, frames, cells, segments, salient, num_layers=8, decoder=SMALL),
        )
    except ValueError as error:  # a straight line, or very few tokens, cannot fall as fast as asked
        if not str(error).startswith("target_flops: "):
            raise
        reject()


@given(plans())
def test_every_plan_keeps_its_promises(made):
    config, cells, segments, salient, plan = made
    tokens = [cells * frames for frames in torch.bincount(segments).tolist()]
    boosts = [1.0] * len(tokens) if salient is None else [config.salient_boost if flag else 1.0 for flag in salient]
    limits = [min(cells, n) for n in tokens] if config.spatial_dedup == "strict" else tokens
    for stage in plan.stages:
        assert sum(stage.budgets) == stage.total == plan.tokens_per_layer[stage.layer + 1]
        assert all(0 <= budget <= limit for budget, limit in zip(stage.budgets, limits, strict=True))
        if stage.total >= len(limits):
            assert min(stage.budgets) >= 1
        # Segments of one size are told apart by salience alone, and else by their place.
        for a in range(len(limits)):
            for b in range(len(limits)):
                if tokens[a] == tokens[b] and boosts[a] > boosts[b]:
                    assert stage.budgets[a] >= stage.budgets[b]
                if a < b and tokens[a] == tokens[b] and boosts[a] == boosts[b]:
                    assert 0 <= stage.budgets[a] - stage.budgets[b] <= 1
        limits = stage.budgets
    assert plan.flops_ratio == pytest.approx(flops_ratio(plan.tokens_per_layer, **SMALL))


@given(plans())
def test_a_plan_is_made_the_same_way_twice(made):
    config, cells, segments, salient, plan = made
    assert plan_of(config, len(segments), cells, segments, salient, num_layers=8, decoder=SMALL) == plan


shares = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0.1, 1000) | st.sampled_from([1.0, 2.0, 1.7, 196.0]), min_size=n, max_size=n),
        st.lists(st.integers(0, 30), min_size=n, max_size=n),
    )
)


@given(shares, st.integers(0, 300))
@example(([100.0, 20.0, 1.0, 1.0], [4, 1, 0, 0]), 2)
def test_allocate(weights_and_caps, total):
    weights, caps = weights_and_caps
    result = allocate(total, weights, caps)
    assert sum(result) == min(total, sum(caps))
    assert all(0 <= got <= cap for got, cap in zip(result, caps, strict=True))
    if total >= sum(cap > 0 for cap in caps):
        assert all(got >= 1 for got, cap in zip(result, caps, strict=True) if cap)


@given(shares, st.integers(0, 300))
def test_allocate_is_water_filling(weights_and_caps, total):
    """Rounding moves nobody by a whole token from the real-valued shares min(cap, max(floor, λ·w))."""
    weights, caps = weights_and_caps
    result = allocate(total, weights, caps)
    floor = 1 if total >= sum(cap > 0 for cap in caps) else 0
    shares_at = lambda level: [min(cap, max(level * w, floor)) for w, cap in zip(weights, caps, strict=True)]  # noqa: E731
    low, high = 0.0, 31 / min(weights)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares_at(middle)) < total else (low, middle)
    assert all(abs(got - share) < 1 + 1e-6 for got, share in zip(result, shares_at(high), strict=True))


@pytest.mark.parametrize(
    ("total", "weights", "caps", "expected"),
    [
        (0, [1, 1], [5, 5], [0, 0]),
        (99, [1, 1], [5, 7], [5, 7]),
        (12, [1, 1], [5, 7], [5, 7]),
        (4, [1, 1], [0, 9], [0, 4]),
        (0, [1, 1], [0, 0], [0, 0]),
        (7, [3], [9], [7]),
        (1, [1, 1, 1], [9, 9, 9], [1, 0, 0]),  # a tie: the earlier segment
        (5, [1, 1, 1], [9, 9, 9], [2, 2, 1]),
        (6, [1, 2], [9, 9], [2, 4]),
        (6, [1, 2], [9, 3], [3, 3]),  # what the cap cuts off goes to the others
        (10, [1000, 1, 1], [50, 50, 50], [8, 1, 1]),  # the floor
        (7, [1, 1, 2], [9, 9, 9], [2, 2, 3]),  # shares 1.75, 1.75, 3.5: the largest remainders
        (5, [0.1, 0.2, 0.7], [9, 9, 9], [1, 1, 3]),
    ],
)
def test_allocate_by_hand(total, weights, caps, expected):
    assert allocate(total, weights, caps) == expected


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"config": {"target_flops": 0.5}}, "config"),
        ({"config": None}, "config"),
        ({"layout": None}, "layout"),
        ({"layout": torch.arange(8)}, "layout"),
        ({"segments": torch.tensor([0])}, "segments"),
        ({"segments": torch.tensor([0, 0, 1])}, "segments"),
        ({"segments": torch.tensor([0, 2])}, "segments"),
        ({"segments": torch.tensor([0.0, 1.0])}, "segments"),
        ({"segments": None}, "segments"),
        ({"salient": torch.tensor([True])}, "salient"),
        ({"salient": torch.tensor([[True, False]])}, "salient"),
        ({"salient": torch.tensor([1, 0])}, "salient"),
        ({"salient": "yes"}, "salient"),
        ({"num_layers": 1}, "num_layers"),
        ({"num_layers": 8.0}, "num_layers"),
        ({"num_layers": 2}, "stages"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"key_width": "32"}, "key_width"),
        ({"mlp_width": None}, "mlp_width"),
    ],
)
def test_make_plan_mistakes(changes, argument):
    good = {
        "config": AdaTPConfig(stages=(1,), target_flops=0.5),
        "layout": VisualLayout.grid(2, 4, 3),
        "segments": torch.tensor([0, 1]),
        "num_layers": 8,
        **SMALL,
    }
    make_plan(**good)
    with names(argument):
        make_plan(**(good | changes))


def test_plans_are_frozen():
    plan = plan_of(AdaTPConfig(), 4, 49)
    assert isinstance(plan, PruningPlan)
    assert isinstance(plan.stages[0], Stage)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.capped = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.stages[0].total = 0


def test_plans_of_a_batch_share_the_smallest_total():
    config = AdaTPConfig(target_flops=0.5, stages=(1, 2))
    layouts = [VisualLayout.grid(4, 9, 3), VisualLayout.grid(4, 9, 3), VisualLayout.grid(6, 9, 1)]
    segments = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 3, 4, 5])]
    alone = [make_plan(config, *row, num_layers=8, **SMALL) for row in zip(layouts, segments, strict=True)]
    surplus = [0, 0, 2]
    plans = make_plans(config, layouts, segments, [None] * 3, surplus=surplus, num_layers=8, **SMALL)
    for i in range(2):
        least = min(9, *(plan.stages[i].total for plan in alone))  # the still video has nine cells
        assert [plan.stages[i].total for plan in plans] == [least, least, least + 2]
        assert [sum(plan.stages[i].budgets) for plan in plans] == [least, least, least + 2]
    assert [plan.shared for plan in plans] == [True, False, True]
    assert plans[1] == alone[1]
    for plan in plans:
        assert plan.tokens_per_layer[2:4] == (plan.stages[0].total, plan.stages[1].total)
        assert plan.flops_ratio == flops_ratio(plan.tokens_per_layer, **SMALL)
        assert all(b <= a for a, b in zip(plan.stages[0].budgets, plan.stages[1].budgets, strict=True))


def test_a_surplus_takes_its_room_from_the_others():
    """A row that keeps more by 5, and may keep 9, leaves 4 for all."""
    layouts = [VisualLayout.grid(4, 9, 3)] * 2
    segments = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 0])]
    config = AdaTPConfig(target_flops=0.9, stages=(1, 2))
    plans = make_plans(config, layouts, segments, [None] * 2, surplus=[0, 5], num_layers=8, **SMALL)
    assert [[stage.total for stage in plan.stages] for plan in plans] == [[4, 4], [9, 9]]
    with pytest.raises(
        ValueError, match="padding: .*row 1 has to keep 9 visual tokens more than the others, of 9 it may"
    ):
        make_plans(config, layouts, segments, [None] * 2, surplus=[0, 9], num_layers=8, **SMALL)

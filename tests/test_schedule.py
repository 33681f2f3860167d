"""Schedule: the same α, to the last bit, as sixty halvings that count every layer's FLOPs."""

import copy
import pickle
import random

import plain_plan
import pytest

from adatp_kernels import AdaTPConfig
from adatp_kernels.schedule import MAX_SCHEDULES, RecentSchedules, Schedule


def drawn(rng, schedule):
    num_layers = rng.randint(2, 40)
    last = rng.randint(1, num_layers - 1)  # early stages reach more targets
    layers = tuple(sorted(rng.sample(range(last), rng.randint(1, min(last, 15)))))
    tokens = rng.choice([1, 2, 3, rng.randint(1, 60), rng.randint(1, 7000), rng.randint(1, 100_000)])
    widths = (rng.choice([64, 3584, rng.randint(1, 9000)]), rng.randint(1, 3000), rng.randint(1, 30_000))
    target = rng.choice([0.15, 0.273, 0.5, 0.9, 1.0, rng.uniform(0.01, 1.0), rng.uniform(0.01, 1.0)])
    config = AdaTPConfig(stages=layers, schedule=schedule, target_flops=target)
    return config, tokens, rng.choice([tokens, rng.randint(1, tokens)]), layers, num_layers, widths


@pytest.mark.parametrize("schedule", ["geometric", "linear"])
def test_alpha_is_that_of_the_plain_bisection(schedule):
    rng, solved, refused = random.Random(schedule), 0, 0
    for _ in range(1500):
        config, tokens, cap, layers, num_layers, widths = drawn(rng, schedule)
        made = Schedule(
            config,
            tokens,
            cap,
            layers,
            num_layers,
            dict(zip(("hidden_size", "key_width", "mlp_width"), widths, strict=True)),
        )
        alpha = plain_plan.solve(schedule, config.target_flops, tokens, cap, layers, num_layers, widths)
        if alpha is None:
            refused += 1
            with pytest.raises(ValueError, match="^target_flops: .* cannot be reached"):
                made.solve()
            continue
        assert made.solve() == alpha, (config, tokens, cap, num_layers, widths)
        assert made.wanted(alpha) == plain_plan.wanted(schedule, alpha, len(layers), tokens)
        totals = [min(want, cap) for want in made.wanted(alpha)]
        assert made.totals(alpha) == totals
        entering = plain_plan.tokens_per_layer(tokens, layers, num_layers, totals)
        assert list(made.tokens_per_layer(totals)) == entering
        assert made.flops_ratio(totals) == plain_plan.flops_ratio(entering, *widths)
        solved += 0 < alpha < 1
    assert solved > 350 and refused > 100


def test_flops_are_exact_where_floats_are_not():
    """A plan of 2·10¹⁷ multiply-accumulates, which a sum of floats rounds."""
    widths = {"hidden_size": 16_383, "key_width": 1023, "mlp_width": 53_247}
    tokens, layers, num_layers = 300_001, tuple(range(1, 67)), 80
    config = AdaTPConfig(stages=layers, schedule=tuple(1 - i / 70 for i in range(66)), target_flops=None)
    made = Schedule(config, tokens, tokens, layers, num_layers, widths)
    entering = plain_plan.tokens_per_layer(tokens, layers, num_layers, made.totals(None))
    assert made.flops_ratio(made.totals(None)) == plain_plan.flops_ratio(entering, *widths.values())


def test_a_schedule_is_solved_once_for_equal_arguments():
    """Whatever differs from what is remembered is solved for itself, and the last few are remembered."""
    recent, widths = RecentSchedules(), {"hidden_size": 64, "key_width": 16, "mlp_width": 128}
    config = AdaTPConfig(stages=(1, 3), target_flops=0.5)
    given = [config, 300, 200, (1, 3), 8, widths]
    first = recent.schedule(*given)
    assert recent.schedule(AdaTPConfig(stages=(1, 3), target_flops=0.5), *given[1:5], {**widths}) is first
    changes = {
        0: AdaTPConfig(stages=(1, 3), target_flops=0.6),
        1: 301,
        2: 199,
        3: (1, 2),
        4: 9,
        5: widths | {"mlp_width": 9},
    }
    for place, value in changes.items():
        other = [*given[:place], value, *given[place + 1 :]]
        assert recent.schedule(*other).planned == Schedule(*other).planned
        assert recent.schedule(*other) is not first
        assert recent.schedule(*given) is first
    for tokens in range(400, 400 + 2 * MAX_SCHEDULES):
        recent.schedule(config, tokens, *given[2:])
    assert len(recent) == MAX_SCHEDULES and recent.schedule(*given) is not first
    for copied in (copy.copy(recent), copy.deepcopy(recent), pickle.loads(pickle.dumps(recent))):
        assert len(copied) == 0


def test_what_cannot_be_reached_is_not_remembered():
    recent = RecentSchedules()
    given = (
        AdaTPConfig(stages=(6,), target_flops=0.1),
        300,
        300,
        (6,),
        8,
        {"hidden_size": 64, "key_width": 16, "mlp_width": 9},
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="^target_flops: .* cannot be reached"):
            recent.schedule(*given)
    assert len(recent) == 0

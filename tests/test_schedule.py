"""Schedule: the same α, to the last bit, as sixty halvings that count every layer's FLOPs."""

import random

import plain_plan
import pytest

from adatp_kernels import AdaTPConfig
from adatp_kernels.schedule import Schedule


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

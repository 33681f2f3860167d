"""Allocator: the same numbers as the plain definition, to the last one."""

import random

import plain_plan
import pytest

from adatp_kernels.allocation import Allocator


def weights_of(rng, kind, count):
    """Sizes of segments as plans have them, boosted or not, and some that no plan has."""
    if kind == "frames":
        return [196.0 * rng.randint(1, 8) for _ in range(count)]
    if kind == "boosted":
        return [rng.randint(1, 6) * 49 * rng.choice([1.0, 1.3]) for _ in range(count)]
    if kind == "alike":
        return [rng.choice([1.0, 2.0])] * count
    return [rng.uniform(0.1, 1000.0) for _ in range(count)]


@pytest.mark.parametrize("kind", ["frames", "boosted", "alike", "any"])
def test_every_share_is_the_plain_one(kind):
    """Stage by stage: the last one's shares are the next one's caps."""
    rng, bound = random.Random(f"shares of {kind}"), {"floor": 0, "cap": 0, "neither": 0}
    for _ in range(2000):
        weights = weights_of(rng, kind, rng.randint(1, 12))
        caps = [rng.choice([rng.randint(0, 30), 5, int(weight), 400]) for weight in weights]
        allocator, total = Allocator(weights), rng.randint(0, sum(caps) + 3)
        for _ in range(4):
            shares = allocator.share(total, caps)
            assert shares == plain_plan.allocate(total, weights, caps), (total, weights, caps)
            level = total / sum(weights)
            caught = any(level * weight < 1 for weight in weights), any(map(lambda w, c: level * w > c, weights, caps))
            bound["floor"] += caught[0]
            bound["cap"] += caught[1]
            bound["neither"] += not any(caught)
            caps, total = shares, int(total * rng.uniform(0.5, 1.0))
    assert min(bound.values()) > 100  # each of the ways to find the level was gone


def test_remainders_that_differ_by_rounding_alone_are_ties():
    """Of 1 token beside 0.1 + 0.2 and 0.3: the earlier segment gets it, though the other's remainder is larger in floats."""
    weights, caps = [0.1 + 0.2, 0.3, 0.4, 1e-3], [9, 9, 9, 9]
    assert weights[0] != weights[1]
    for order in ([0, 1, 2, 3], [1, 0, 2, 3]):
        mine = [weights[s] for s in order]
        for total in range(1, 36):
            assert Allocator(mine).share(total, caps) == plain_plan.allocate(total, mine, caps)


def test_a_cap_that_is_reached_while_another_segment_is_at_its_floor():
    weights, caps = [1000.0, 1.0, 900.0], [50, 50, 5000]
    for total in range(3, 5100, 7):
        assert Allocator(weights).share(total, caps) == plain_plan.allocate(total, weights, caps), total


@pytest.mark.parametrize("kind", ["frames", "boosted", "alike", "any"])
def test_all_stages_at_once(kind):
    """Each stage's shares are the next one's caps, whether a floor, a cap or a tie decides or none of them."""
    rng = random.Random(f"stages of {kind}")
    for _ in range(1500):
        weights = weights_of(rng, kind, rng.randint(1, 12))
        caps = [rng.choice([int(weight), int(weight), 400, rng.randint(0, 30)]) for weight in weights]
        totals = sorted((rng.randint(0, sum(caps) + 3) for _ in range(rng.randint(1, 9))), reverse=True)
        expected, limits = [], caps
        for total in totals:
            limits = plain_plan.allocate(total, weights, limits)
            expected.append(limits)
        assert Allocator(weights).shares(totals, caps) == expected, (totals, weights, caps)


def test_remainders_that_are_close_to_each_other_are_told_apart_at_every_stage():
    """Exactly alike, alike but for rounding, and different by less and by more than nine decimals show."""
    for weights in ([0.1 + 0.2, 0.3, 0.4], [0.3, 0.1 + 0.2, 0.4], [0.3, 0.3 + 4e-9, 0.4], [0.3 + 1e-7, 0.3, 0.3]):
        mine = [20 * weight for weight in weights] * 2 + [0.05]
        caps = [99] * 7
        for total in range(400, 20, -1):
            first = plain_plan.allocate(total, mine, caps)
            expected = [first, plain_plan.allocate(total - 7, mine, first)]
            assert Allocator(mine).shares([total, total - 7], caps) == expected

"""The plan as algorithm.md defines it, stage by stage and layer by layer, without a thought for time."""

from __future__ import annotations

import math

# How far even the cheapest plan may lie above its target.
TOLERANCE = 0.005


def allocate(total, weights, caps):
    """Water-filling between floors and caps, rounded down; what is left goes to the largest remainders."""
    if total >= sum(caps):
        return list(caps)
    floors = [min(1, cap) for cap in caps]
    if total < sum(floors):
        floors = [0] * len(caps)
    level, filled, slope = 0.0, float(sum(floors)), 0.0
    leaves_floor = [(low / w, w) for w, low in zip(weights, floors, strict=True)]
    reaches_cap = [(cap / w, -w) for w, cap in zip(weights, caps, strict=True)]
    for at, change in sorted(leaves_floor + reaches_cap):
        step = (at - level) * slope
        if filled + step >= total and slope > 0:
            break
        level, filled, slope = at, filled + step, slope + change
    level = level + (total - filled) / slope if slope > 0 else level
    shares = [min(max(level * w, low), cap) for w, low, cap in zip(weights, floors, caps, strict=True)]
    result = [math.floor(share + 1e-9) for share in shares]
    by_remainder = sorted(range(len(caps)), key=lambda s: (round(result[s] - shares[s], 9), s))
    while sum(result) < total:
        for s in by_remainder:
            if sum(result) < total and result[s] < caps[s]:
                result[s] += 1
    return result


def flops_ratio(tokens_per_layer, d, k, m):
    cost = [2 * n * d * k + 2 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in tokens_per_layer]
    return sum(cost) / (cost[0] * len(cost))


def tokens_per_layer(tokens, layers, num_layers, totals):
    entering = [tokens] * num_layers
    for layer, total in zip(layers, totals, strict=True):
        entering[layer + 1 :] = [total] * (num_layers - layer - 1)
    return entering


def shares(schedule, alpha, count):
    if schedule == "linear":
        return [1 - (1 - alpha) * i / count for i in range(1, count + 1)]
    return [alpha**i for i in range(1, count + 1)] if schedule == "geometric" else schedule


def wanted(schedule, alpha, count, tokens):
    least = 0 if alpha is None else 1
    return [max(least, math.floor(tokens * share + 0.5)) for share in shares(schedule, alpha, count)]


def solve(schedule, target, tokens, cap, layers, num_layers, widths):
    """The α of sixty halvings, with every layer counted at each; None if the target cannot be reached."""

    def ratio(totals):
        return flops_ratio(tokens_per_layer(tokens, layers, num_layers, totals), *widths)

    def at(alpha):
        return ratio([min(want, cap) for want in wanted(schedule, alpha, len(layers), tokens)])

    if ratio([tokens * share for share in shares(schedule, 0.0, len(layers))]) > target + TOLERANCE:
        return None
    if at(1.0) <= target:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) <= target else (low, middle)
    return low if target - at(low) <= at(high) - target else high


def plan(schedule, target, layers, num_layers, widths, weights, caps, tokens):
    """(α, budgets of each stage, tokens that enter each layer, their share of the FLOPs); None as for `solve`."""
    alpha = None
    if isinstance(schedule, str):
        alpha = solve(schedule, target, tokens, sum(caps), layers, num_layers, widths)
        if alpha is None:
            return None
    budgets, limits = [], caps
    for want in wanted(schedule, alpha, len(layers), tokens):
        limits = allocate(min(want, sum(caps)), weights, limits)
        budgets.append(tuple(limits))
    entering = tokens_per_layer(tokens, layers, num_layers, [sum(kept) for kept in budgets])
    return alpha, budgets, tuple(entering), flops_ratio(entering, *widths)

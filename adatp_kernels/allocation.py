"""Sharing a stage's total out among the segments (``algorithm.md``, "The plan")."""

from __future__ import annotations

import math
from collections.abc import Sequence


def allocate(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share `total` out in proportion to `weights`, never above `caps`: water-filling, then rounding.

    Every segment whose cap allows it gets at least 1 while `total` suffices; the real-valued shares
    are rounded down and what is left goes to the largest remainders, ties to the earlier segment. If
    the caps sum to less than `total`, the caps are the result.

    Parameters
    ----------
    total : int
        At least 0.
    weights : sequence of float
        Positive.
    caps : sequence of int
        At least 0.
    """
    if total >= sum(caps):
        return list(caps)
    floors = [min(1, cap) for cap in caps]
    if total < sum(floors):
        floors = [0] * len(caps)
    level = _water_level(total, weights, floors, caps)
    shares = [min(max(level * w, low), cap) for w, low, cap in zip(weights, floors, caps, strict=True)]
    result = [math.floor(share + 1e-9) for share in shares]
    by_remainder = sorted(range(len(caps)), key=lambda s: (round(result[s] - shares[s], 9), s))
    left = total - sum(result)
    while left > 0:
        for s in by_remainder:
            if left and result[s] < caps[s]:
                result[s] += 1
                left -= 1
    return result


def _water_level(total: int, weights: Sequence[float], floors: Sequence[int], caps: Sequence[int]) -> float:
    """The level λ at which ``Σ clamp(λ·w, floor, cap)`` is `total`; exact, by the function's breakpoints."""
    # Between neighbouring breakpoints the sum is linear: slope = weights that are above floor and below cap.
    events = sorted(
        [(low / w, w) for w, low in zip(weights, floors, strict=True)]
        + [(cap / w, -w) for w, cap in zip(weights, caps, strict=True)]
    )
    level, filled, slope = 0.0, float(sum(floors)), 0.0
    for breakpoint_level, change in events:
        step = (breakpoint_level - level) * slope
        if filled + step >= total and slope > 0:
            break
        level, filled, slope = breakpoint_level, filled + step, slope + change
    return level + (total - filled) / slope if slope > 0 else level

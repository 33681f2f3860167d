"""Sharing a stage's total out among the segments (``algorithm.md``, "The plan")."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


class Allocator:
    """Shares totals out in proportion to weights, never above caps: water-filling, then rounding.

    Every segment whose cap allows it gets at least 1 while the total suffices; the real-valued shares
    are rounded down and what is left goes to the largest remainders, ties to the earlier segment.

    Parameters
    ----------
    weights : sequence of float
        Positive, one per segment.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = weights
        # Where each segment leaves its floor of 1, as `_water_level` takes it: one order for all stages.
        self._floors_left = sorted((1 / weight, weight) for weight in weights)
        level, filled, slope = 0.0, float(len(weights)), 0.0
        for left_at, weight in self._floors_left:
            level, filled, slope = left_at, filled + (left_at - level) * slope, slope + weight
        self._above_floors = level, filled, slope

    def share(self, total: int, caps: Sequence[int]) -> list[int]:
        """How much of `total` every segment gets; the caps themselves if they sum to less.

        Parameters
        ----------
        total : int
            At least 0.
        caps : sequence of int
            At least 0, one per segment.
        """
        if total >= sum(caps):
            return list(caps)
        level, floors = self._water_level(total, caps)
        shares = [
            cap if level * weight > cap else low if level * weight < low else level * weight
            for weight, low, cap in zip(self.weights, floors, caps, strict=True)
        ]
        result = [int(share + 1e-9) for share in shares]
        left = total - sum(result)
        by_remainder = _ascending([got - share for got, share in zip(result, shares, strict=True)]) if left else []
        while left > 0:
            for s in by_remainder:
                if left and result[s] < caps[s]:
                    result[s] += 1
                    left -= 1
        return result

    def _water_level(self, total: int, caps: Sequence[int]) -> tuple[float, Sequence[int]]:
        """The level λ at which ``Σ clamp(λ·w, floor, cap)`` is `total`, exact by the sum's breakpoints; and the floors."""
        # Between neighbouring breakpoints the sum is linear: slope = weights that are above floor and below cap.
        caps_reached = [(cap / weight, -weight) for weight, cap in zip(self.weights, caps, strict=True)]
        level, filled, slope = self._above_floors
        if filled < total and level < min(caps_reached)[0]:  # then no cap is 0, and no floor binds at the level sought
            floors: Sequence[int] = [1] * len(caps)
            events = sorted(caps_reached)
        else:
            floors = [min(1, cap) for cap in caps]
            if total < sum(floors):
                floors = [0] * len(caps)
            leaving = zip(floors, self.weights, strict=True)
            events = sorted([(low / weight, weight) for low, weight in leaving] + caps_reached)
            level, filled, slope = 0.0, float(sum(floors)), 0.0
        for breakpoint_level, change in events:
            step = (breakpoint_level - level) * slope
            if filled + step >= total and slope > 0:
                break
            level, filled, slope = breakpoint_level, filled + step, slope + change
        return level + (total - filled) / slope if slope > 0 else level, floors


def allocate(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share `total` out once; see `Allocator`."""
    return Allocator(weights).share(total, caps)


def _ascending(values: list[float]) -> list[int]:
    """The numbers of `values` in ascending order of their nine first decimals, ties to the earlier one."""
    order = sorted(range(len(values)), key=values.__getitem__)
    gaps = [values[after] - values[before] for before, after in itertools.pairwise(order)]
    # Rounding, which is slow, changes no order but that of neighbours this close.
    if any(0 < gap < 2e-9 for gap in gaps):
        order.sort(key=lambda s: (round(values[s], 9), s))
    return order

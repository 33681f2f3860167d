"""Sharing a stage's total out among the segments (``algorithm.md``, "The plan")."""

from __future__ import annotations

import operator
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
        # Where `_water_level` is once every segment is above its floor of 1: the same at all stages.
        level, filled, slope = 0.0, float(len(weights)), 0.0
        for left_at, weight in sorted((1 / weight, weight) for weight in weights):
            level, filled, slope = left_at, filled + (left_at - level) * slope, slope + weight
        self._above_floors = level, filled, slope

    def shares(self, totals: Sequence[int], caps: Sequence[int]) -> list[Sequence[int]]:
        """`share` of one total after the other, each with the shares of the one before it as caps; the first with `caps`."""
        weights, (start, filled, slope) = self.weights, self._above_floors
        changes, segments = [-weight for weight in weights], range(len(weights))
        room, stages = sum(caps), []
        for total in totals:
            if total < room:
                shared = None
                caps_reached = [*map(operator.truediv, caps, weights)]
                first = min(caps_reached)
                # Mostly all segments are above their floors before the first is at its cap. Then this is `share`, in one
                # go: a plan has many stages, and calls would take longer than what is done in them.
                if filled < total and start < first:
                    level, reached, rises = start, filled, slope
                    if filled + (first - start) * slope >= total:
                        level += (total - filled) / slope
                        shares = [level * weight for weight in weights]
                    else:
                        for at, change in sorted(zip(caps_reached, changes, strict=True)):
                            step = (at - level) * rises
                            if reached + step >= total and rises > 0:
                                break
                            level, reached, rises = at, reached + step, rises + change
                        if rises > 0:
                            level += (total - reached) / rises
                        shares = [*map(min, caps, [level * weight for weight in weights])]
                    shared = [int(share + 1e-9) for share in shares]
                    left = total - sum(shared)
                    if left:
                        short = [*map(operator.sub, shared, shares)]
                        order = sorted(segments, key=short.__getitem__)
                        last = short[order[left - 1]]
                        # Beside one that misses next to nothing, or as much as another but for rounding, `share` decides.
                        if left > 0 and last < -1e-6 and not [x for x in short if -2e-9 < x - last < 2e-9 and x != last]:
                            for s in order[:left]:
                                shared[s] += 1
                        else:
                            shared = None
                caps = self.share(total, caps) if shared is None else shared
                room = sum(caps)
            stages.append(caps)
        return stages

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
            low if share < low else cap if share > cap else share
            for share, low, cap in zip([level * weight for weight in self.weights], floors, caps, strict=True)
        ]
        result = [int(share + 1e-9) for share in shares]
        left = total - sum(result)
        by_remainder = _ascending([*map(operator.sub, result, shares)]) if left else []
        while left > 0:
            for s in by_remainder:
                if result[s] < caps[s]:
                    result[s] += 1
                    left -= 1
                    if not left:
                        break
        return result

    def _water_level(self, total: int, caps: Sequence[int]) -> tuple[float, Sequence[int]]:
        """The level λ at which ``Σ clamp(λ·w, floor, cap)`` is `total`, exact by the sum's breakpoints; and the floors."""
        # Between neighbouring breakpoints the sum is linear: slope = weights that are above floor and below cap.
        level, filled, slope = self._above_floors
        caps_reached = [*map(operator.truediv, caps, self.weights)]
        first = min(caps_reached)
        if (
            filled < total and level < first
        ):  # no cap is reached before the last floor is left, and the level is above that
            floors: Sequence[int] = [1] * len(caps)
            if filled + (first - level) * slope >= total:
                return level + (total - filled) / slope, floors
            events = []
        else:
            floors = [min(1, cap) for cap in caps]
            if total < sum(floors):
                floors = [0] * len(caps)
            events = [(low / weight, weight) for low, weight in zip(floors, self.weights, strict=True)]
            level, filled, slope = 0.0, float(sum(floors)), 0.0
        events += [(reached, -weight) for reached, weight in zip(caps_reached, self.weights, strict=True)]
        for breakpoint_level, change in sorted(events):
            step = (breakpoint_level - level) * slope
            if filled + step >= total and slope > 0:
                break
            level, filled, slope = breakpoint_level, filled + step, slope + change
        return level + (total - filled) / slope if slope > 0 else level, floors


def allocate(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share `total` out once; see `Allocator`."""
    return Allocator(weights).share(total, caps)


def _ascending(values: list[float]) -> list[int]:
    """The numbers of `values` in ascending order of their first nine decimals, ties to the earlier one."""
    distinct = sorted(set(values))
    # Rounding takes long. It changes the order of neighbours only that are as close as this.
    if len(distinct) > 1 and min(map(operator.sub, distinct[1:], distinct)) < 2e-9:
        return sorted(range(len(values)), key=lambda s: (round(values[s], 9), s))
    return sorted(range(len(values)), key=values.__getitem__)

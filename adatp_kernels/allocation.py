"""Sharing the stages' totals out among the segments (``algorithm.md``, "The plan")."""

from __future__ import annotations

import bisect
import math
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
        # How the water rises while segments leave their floors of 1 and none is at its cap: the same at all stages.
        self._leaving = sorted([(1 / weight, weight) for weight in weights])
        level, filled, slope = 0.0, float(len(weights)), 0.0
        self._risen = [(level, filled, slope)]
        for left_at, weight in self._leaving:
            level, filled, slope = left_at, filled + (left_at - level) * slope, slope + weight
            self._risen.append((level, filled, slope))

    def share(self, total: int, caps: Sequence[int]) -> list[int]:
        """How much of `total` every segment gets; the caps themselves if they sum to less.

        Parameters
        ----------
        total : int
            At least 0.
        caps : sequence of int
            At least 0, one per segment.
        """
        return [*self.shares([total], caps)[0]]

    def shares(self, totals: Sequence[int], caps: Sequence[int]) -> list[Sequence[int]]:
        """`share` of one total after the other, each with the shares of the one before it as caps; the first with `caps`."""
        # A plan has many stages and few segments: calls would take longer than what is done in them, so there are none.
        weights, leaving, risen = self.weights, self._leaving, self._risen
        segments, drops = range(len(weights)), [-weight for weight in weights]
        leaves_at, filled_then = [at for at, _ in leaving] + [math.inf], [filled for _, filled, _ in risen]
        ones, room, stages = [1] * len(caps), sum(caps), []
        for total in totals:
            if total >= room:
                stages.append(caps)
                continue
            # The level λ at which Σ clamp(λ·w, floor, cap) is the total. Between neighbouring breakpoints the sum is
            # linear: slope = weights that are above floor and below cap.
            caps_reached = [*map(operator.truediv, caps, weights)]
            first = min(caps_reached)
            risen_past, done = 0, False
            if first > 0 and total >= len(caps):
                floors = ones
                risen_past = bisect.bisect_left(leaves_at, first)  # floors that are left before a cap is reached
                if filled_then[risen_past] >= total:
                    risen_past = min(risen_past, max(1, bisect.bisect_left(filled_then, total) - 1))
                level, filled, slope = risen[risen_past]
                following = leaves_at[risen_past]
                done = slope > 0 and filled + ((first if first < following else following) - level) * slope >= total
                events = [] if done else leaving[risen_past:]
            else:
                floors = [0] * len(caps) if total < len(caps) - caps.count(0) else [1 if cap else 0 for cap in caps]
                level, filled, slope = 0.0, float(sum(floors)), 0.0
                events = [*zip(map(operator.truediv, floors, weights), weights, strict=True)]
            if not done:
                events += zip(caps_reached, drops, strict=True)
                events.sort()
                for at, change in events:
                    step = (at - level) * slope
                    if filled + step >= total and slope > 0:
                        break
                    level, filled, slope = at, filled + step, slope + change
            if slope > 0:
                level += (total - filled) / slope
            shares = [level * weight for weight in weights]
            if not done or risen_past < len(caps):
                shares = [
                    low if share < low else cap if share > cap else share
                    for share, low, cap in zip(shares, floors, caps, strict=True)
                ]
            kept = [int(share + 1e-9) for share in shares]
            left = total - sum(kept)
            if left > 0:
                missing = [*map(operator.sub, kept, shares)]
                order = sorted(segments, key=missing.__getitem__)
                last = missing[order[left - 1]] if left < len(order) else 0.0
                # Remainders are compared to nine decimals. Rounding takes long, and matters only where the last one that
                # is rounded up is that close to another, or to nothing.
                if last > -1e-6 or [x for x in missing if -2e-9 < x - last < 2e-9 and x != last]:
                    order = sorted(segments, key=[round(x, 9) for x in missing].__getitem__)
                while left:
                    for s in order:
                        if kept[s] < caps[s]:
                            kept[s] += 1
                            left -= 1
                            if not left:
                                break
            stages.append(kept)
            caps, room = kept, sum(kept)
        return stages


def allocate(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Share `total` out once; see `Allocator`."""
    return Allocator(weights).share(total, caps)

"""Schedules: how many tokens each stage keeps as a function of one number α, and the α that meets the FLOPs target."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

from adatp_kernels.config import AdaTPConfig

Count = TypeVar("Count", int, float)

MAX_SCHEDULES = 16

# How far the planned share of the FLOPs may lie above a target before the target counts as unreachable.
TOLERANCE = 0.005


def layer_flops(tokens: Count, hidden_size: int, key_width: int, mlp_width: int) -> Count:
    """`visual_flops` without its checks; exact where `tokens` is an int."""
    n, d = tokens, hidden_size
    return 2 * n * d * key_width + 2 * n * d * d + 2 * n * n * d + 3 * n * d * mlp_width


class RecentSchedules:
    """Schedules of the last few numbers of tokens and caps: videos of one length differ in neither, or in the caps only.

    At most `MAX_SCHEDULES`. As in `RecentStates` there is no lock, and a copy, and what comes back from a pickle, is empty.
    """

    def __init__(self) -> None:
        self._entries: tuple[tuple[tuple[Any, ...], Schedule], ...] = ()

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[RecentSchedules], tuple[()]]:
        return RecentSchedules, ()

    def schedule(
        self,
        config: AdaTPConfig,
        tokens: int,
        cap: int,
        layers: tuple[int, ...],
        num_layers: int,
        decoder: dict[str, int],
    ) -> Schedule:
        """The `Schedule` of these arguments; it never changes."""
        key = (tokens, cap, config, num_layers, layers, tuple(decoder.items()))
        entries = self._entries
        for known, schedule in entries:
            if known == key:
                return schedule
        schedule = Schedule(config, tokens, cap, layers, num_layers, decoder)
        schedule.planned  # noqa: B018 - which is what takes long, or is refused
        self._entries = ((key, schedule), *entries)[:MAX_SCHEDULES]
        return schedule


class Schedule:
    """The totals of a configuration's stages.

    Parameters
    ----------
    config : AdaTPConfig
    tokens : int
        Visual tokens of the video.
    cap : int
        How many of them the segments' caps allow a stage to keep.
    layers : tuple of int
        The layers, from zero, after which the stages drop tokens.
    num_layers, decoder
        The decoder: its layers, and by name the widths that `layer_flops` takes. Python's own integers, whose sums are exact.
    """

    def __init__(
        self,
        config: AdaTPConfig,
        tokens: int,
        cap: int,
        layers: tuple[int, ...],
        num_layers: int,
        decoder: dict[str, int],
    ) -> None:
        self.config, self.tokens, self.cap, self.layers, self.num_layers = config, tokens, cap, layers, num_layers
        self._stages = range(1, len(layers) + 1)
        # How many decoder layers the whole video enters, and of each stage, how many its total enters.
        starts = [layer + 1 for layer in layers]
        self.whole = starts[0]
        self.widths = [after - start for start, after in itertools.pairwise([*starts, num_layers])]
        # The FLOPs of n tokens are linear·n + quadratic·n², so that of a plan two sums over its stages are enough.
        self.quadratic = 2 * decoder["hidden_size"]
        self.linear = layer_flops(1, **decoder) - self.quadratic
        a_layer = layer_flops(tokens, **decoder)
        self.before, self.unpruned = self.whole * a_layer, num_layers * a_layer

    @cached_property
    def planned(self) -> tuple[float | None, list[int], list[int]]:
        """The α that meets the target, None with an explicit schedule, and its `wanted` and `totals`."""
        alpha = self.solve() if isinstance(self.config.schedule, str) else None
        wanted = self.wanted(alpha)
        return alpha, wanted, self._capped(wanted)

    def wanted(self, alpha: float | None) -> list[int]:
        """Totals as scheduled, before the caps, which never rise; `alpha` is None with an explicit schedule."""
        tokens = self.tokens
        totals = [int(tokens * share + 0.5) for share in self._shares(alpha, self._stages)]
        # A caller who writes the schedule out may drop everything.
        return totals if totals[-1] or alpha is None else [total or 1 for total in totals]

    def totals(self, alpha: float | None) -> list[int]:
        """Totals that the caps allow."""
        return self._capped(self.wanted(alpha))

    def _capped(self, totals: list[int]) -> list[int]:
        cap = self.cap
        return totals if totals[0] <= cap else [cap if total > cap else total for total in totals]

    def _shares(self, alpha: float | None, stages: Sequence[int]) -> Sequence[float]:
        """Share of the visual tokens that each of `stages`, counted from 1, is to keep."""
        if alpha is None:
            assert not isinstance(self.config.schedule, str)
            return self.config.schedule
        if self.config.schedule == "linear":
            count = len(self._stages)
            return [1 - (1 - alpha) * i / count for i in stages]
        return [alpha**i for i in stages]

    def tokens_per_layer(self, totals: Sequence[int]) -> tuple[int, ...]:
        """Visual tokens that enter each layer when the stages keep `totals`."""
        entering = [self.tokens] * self.whole
        for width, total in zip(self.widths, totals, strict=True):
            entering += [total] * width
        return tuple(entering)

    def flops_ratio(self, totals: Sequence[float]) -> float:
        """FLOPs of a plan that keeps `totals`, as a share of the unpruned ones."""
        return (self.before + self._flops(self.widths, totals)) / self.unpruned

    def _flops(self, widths: Sequence[int], totals: Sequence[Any]) -> Any:
        """FLOPs of the `widths` layers that `totals` tokens enter."""
        entering = [*map(operator.mul, widths, totals)]
        return self.linear * sum(entering) + self.quadratic * sum(map(operator.mul, entering, totals))

    def solve(self) -> float:
        """The α whose plan comes nearest to `target_flops`, by bisection; the ratio rises with α.

        Raises
        ------
        ValueError
            If the target is below what the layers before the first stage cost alone.
        """
        target = self.config.target_flops
        assert target is not None
        # Without the floor of one token a stage: a video of very few tokens is no reason to refuse.
        least = self.flops_ratio([self.tokens * share for share in self._shares(0.0, self._stages)])
        if least > target + TOLERANCE:
            raise ValueError(
                f"target_flops: {target} cannot be reached with a {self.config.schedule} schedule and stages after layers "
                f"{list(self.layers)} of {self.num_layers}: the least is {least:.3f}. Raise target_flops or prune after an earlier layer"
            )
        low, high = 0.0, 1.0
        at_low, at_high = self.totals(low), self.totals(high)
        if self.flops_ratio(at_high) <= target:
            return high
        if self.flops_ratio(at_low) > target:  # by the one token a stage
            return low
        return self._bisect(target, at_low, at_high)

    def _bisect(self, target: float, at_low: list[int], at_high: list[int]) -> float:
        """`solve` between 0 and 1, where the totals are `at_low` and `at_high`."""
        # One loop without a call to Python's own functions, each of which would take as long as the arithmetic in it.
        tokens, cap, count, linear = self.tokens, self.cap, len(self._stages), self.config.schedule == "linear"
        each, square, settled, unpruned = self.linear, self.quadratic, self.before, self.unpruned
        low, high, halvings = 0.0, 1.0, 60
        stages, widths, apart = [*self._stages], self.widths, sum(at_high) - sum(at_low)
        while apart > 1 and halvings:
            halvings -= 1
            middle = (low + high) / 2
            if linear:
                totals = [int(tokens * (1 - (1 - middle) * i / count) + 0.5) for i in stages]
            else:
                totals = [int(tokens * middle**i + 0.5) for i in stages]
            if not totals[-1]:
                totals = [total or 1 for total in totals]
            if totals[0] > cap:
                totals = [cap if total > cap else total for total in totals]
            entering = [*map(operator.mul, widths, totals)]
            flops = settled + each * sum(entering) + square * sum(map(operator.mul, entering, totals))
            if flops / unpruned <= target:
                low, at_low = middle, totals
            else:
                high, at_high = middle, totals
            apart = sum(at_high) - sum(at_low)
            if apart < len(stages):
                # A total rises with α, so a stage that keeps the same at both ends does so in between: it is settled.
                moves = [*map(operator.ne, at_low, at_high)]
                same = [not move for move in moves]
                settled += self._flops([*itertools.compress(widths, same)], [*itertools.compress(totals, same)])
                stages, widths, at_low, at_high = (
                    [*itertools.compress(values, moves)] for values in (stages, widths, at_low, at_high)
                )
        if halvings:  # what is left is one stage that keeps one token more from some α on
            moving = [*map(operator.ne, at_low, at_high)].index(True)
            stage, kept = stages[moving], at_low[moving]
            for _ in range(halvings):
                middle = (low + high) / 2
                share = 1 - (1 - middle) * stage / count if linear else middle**stage
                if int(tokens * share + 0.5) <= kept:
                    low = middle
                else:
                    high = middle
        short, over = (settled + self._flops(widths, totals) for totals in (at_low, at_high))
        return low if target - short / unpruned <= over / unpruned - target else high

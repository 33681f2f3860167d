"""Paired bootstrap intervals: how far accuracies, and differences of them on the same clips, may be from what was seen."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Bootstrap:
    """Resamples of the clips, the same for all methods.

    Parameters
    ----------
    values : float array [methods, clips]
        What each method got for each clip, for instance whether the answer was right.
    seed : int
    """

    def __init__(self, values: np.ndarray, seed: int = 0) -> None:
        clips = values.shape[1]
        counts = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), RESAMPLES)
        self.means = values.mean(1)
        self._resampled = values @ counts.T / clips  # [methods, RESAMPLES]

    def interval(self, method: int) -> tuple[float, float]:
        """Where 95 % of the resampled means of a method lie."""
        return _middle(self._resampled[method])

    def difference(self, one: int, other: int) -> tuple[float, float, float]:
        """Mean difference of two methods, and where 95 % of the resampled ones lie."""
        low, high = _middle(self._resampled[one] - self._resampled[other])
        return float(self.means[one] - self.means[other]), low, high


def _middle(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

"""Paired bootstrap intervals."""

import numpy as np
import pytest

from adatp_kernels.evaluation.statistics import Bootstrap


def test_intervals_are_those_of_a_proportion():
    values = np.zeros((1, 400))
    values[0, :100] = 1
    low, high = Bootstrap(values).interval(0)
    spread = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - spread, abs=0.006) and high == pytest.approx(0.25 + spread, abs=0.006)


def test_differences_are_paired():
    """Two methods that differ on few clips differ surely, however hard the clips are."""
    rng = np.random.default_rng(1)
    one = (rng.random(1000) < 0.5).astype(float)
    other = one.copy()
    other[np.flatnonzero(one)[:20]] = 0
    bootstrap = Bootstrap(np.stack([one, other, one]))
    mean, low, high = bootstrap.difference(0, 1)
    assert mean == pytest.approx(0.02)
    spread = 1.96 * np.sqrt(0.02 * 0.98 / 1000)
    assert low == pytest.approx(0.02 - spread, abs=0.003) and high == pytest.approx(0.02 + spread, abs=0.003)
    assert bootstrap.difference(0, 2) == (0, 0, 0)
    assert bootstrap.difference(1, 0) == pytest.approx((-mean, -high, -low))
    assert bootstrap.interval(0) == Bootstrap(np.stack([one])).interval(0)  # the same on every run

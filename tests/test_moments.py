"""Moments pool without cancellation, and drift is said in deviations: float64 numpy without a module."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.moments import Moments, Statistics, drift_of


@pytest.mark.parametrize("cuts", [(10,), (1, 2, 99), tuple(range(1, 100))])
def test_moments_do_not_depend_on_how_the_values_were_split_or_on_where_they_are(cuts: tuple[int, ...]) -> None:
    values = np.random.RandomState(0).normal(1e8, 1.0, (100, 3))
    parts = [part for part in np.split(values, cuts) if len(part)]
    moments = [Moments(len(p), 1, p.mean(axis=0), ((p - p.mean(axis=0)) ** 2).sum(axis=0)) for p in parts]
    total = sum(moments[1:], moments[0])
    assert (total.count, total.calls) == (100, len(parts))
    np.testing.assert_allclose(total.statistics.mean, values.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(total.statistics.variance, values.var(axis=0, ddof=1), rtol=1e-7)
    textbook = ((values**2).sum(axis=0) - 100 * values.mean(axis=0) ** 2) / 99
    assert np.abs(textbook / values.var(axis=0, ddof=1) - 1).max() > 1e-3


def statistics(mean: list[float], variance: list[float]) -> Statistics:
    return Statistics(np.array(mean), np.array(variance))


def test_near_is_relative_to_the_deviation_and_rejects_what_is_not() -> None:
    one = statistics([0.0, 1.0], [4.0, 1.0])
    assert one.near(statistics([1e-6, 1.0], [4.0, 1.0]), 0.0, 1e-6)
    assert not one.near(statistics([3e-6, 1.0], [4.0, 1.0]), 0.0, 1e-6)
    assert not one.near(statistics([0.0, 1.0], [4.0, 1.00001]), 0.0, 1e-6)
    broken = statistics([np.nan, 1.0], [4.0, 1.0])
    assert broken.near(broken, 0.0, 1e-6)
    assert not one.near(broken, 0.0, 1e-6)
    assert not broken.near(one, 0.0, 1e-6)
    assert one.finite
    assert not broken.finite
    assert not statistics([0.0], [np.inf]).finite


def test_drift_says_how_far_where_and_in_what_unit() -> None:
    old, new = statistics([1.0, 0.0], [4.0, 0.75]), statistics([4.0, 0.0], [12.5, 3.75])
    drift = drift_of("norm", 12, old, new, 0.25)
    shift, divergence = 3 / np.sqrt(4.25), (9 / 4.25 + 3 - 1 - np.log(3)) / 2
    assert (drift.name, drift.channels, drift.count, drift.worst_channel) == ("norm", 2, 12, 0)
    assert (drift.variance_low, drift.variance_high) == (3, 4)
    assert [drift.mean_max, drift.mean_rms, drift.divergence] == pytest.approx([shift, shift / np.sqrt(2), divergence])
    still = drift_of("norm", 12, old, old, 0.25)
    assert (still.mean_max, still.variance_low, still.variance_high, still.divergence) == (0, 1, 1, 0)
    assert drift_of("norm", 12, new, old, 0.25).variance_low == 0.25
    assert drift_of("norm", 12, old, statistics([1.0, 0.0], [4.0, 60.0]), 0.25).worst_channel == 1

"""Middles, tails and intervals, against plain definitions and on numbers whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coda_compile.statistics import bootstrap, ratio_interval, summarise

SECONDS = st.lists(st.floats(1e-4, 10.0), min_size=2, max_size=40)


def test_summary_of_a_hundred_and_one_runs():
    summary = summarise([i / 100 for i in range(101)])
    assert (summary.median, summary.p90, summary.p99) == pytest.approx((0.5, 0.9, 0.99))
    assert summary.spread == pytest.approx(1.0)


def test_rounds_are_paired_so_a_slow_spell_of_the_machine_cancels():
    drift = np.array([1.0, 5.0, 1.0, 9.0, 2.0])
    faster = ratio_interval(3.0 * drift, drift)
    assert (faster.middle, faster.low, faster.high) == pytest.approx((3.0, 3.0, 3.0))


@given(SECONDS, st.floats(0.1, 10.0))
def test_interval_holds_its_middle_and_scales(seconds: list[float], factor: float):
    one = ratio_interval(seconds, seconds[::-1])
    more = ratio_interval([factor * s for s in seconds], seconds[::-1])
    assert one.low <= one.middle <= one.high
    assert more.middle == pytest.approx(factor * one.middle)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        a, b = generator.lognormal(np.log(1.3), 0.1, 25), generator.lognormal(0.0, 0.1, 25)
        interval = ratio_interval(a, b, resamples=400)
        held += interval.low <= 1.3 <= interval.high
    assert held >= 180  # 190 expected at 95 %


def test_more_rounds_narrow_the_interval():
    generator = np.random.default_rng(1)
    widths = []
    for rounds in (10, 1000):
        interval = ratio_interval(generator.lognormal(0, 0.2, rounds), np.ones(rounds))
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 3


def test_bootstrap_covers_a_known_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        sample = draw.normal(3.0, 1.0, 50)
        interval = bootstrap(lambda some, sample=sample: float(sample[some].mean()), 50, resamples=200)
        covered += interval.low <= 3.0 <= interval.high
        assert interval.middle == pytest.approx(sample.mean())
    assert 85 <= covered <= 100


def test_bootstrap_of_what_does_not_vary_is_a_point():
    interval = bootstrap(lambda some: float(np.ones(9)[some].mean()), 9)
    assert (interval.low, interval.middle, interval.high) == (1.0, 1.0, 1.0)

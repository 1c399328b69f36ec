"""Statistics of timings and of texts: medians, tails, and bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its bootstrap interval."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Seconds of one contender on one input.

    Attributes:
        median, p90, p99: of all runs.
        spread: distance between the quartiles as a fraction of the median.
    """

    median: float
    p90: float
    p99: float
    spread: float


def summarise(seconds: Sequence[float]) -> Summary:
    """Median, tails and spread of measured runs."""
    low, middle, high, p90, p99 = np.percentile(seconds, [25, 50, 75, 90, 99])
    return Summary(float(middle), float(p90), float(p99), float((high - low) / middle))


def ratio_interval(
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The median over rounds of the ratio within a round, with its percentile bootstrap interval.

    Rounds are paired, so that a machine that slows down for a while slows both sides of a ratio.

    Args:
        numerator, denominator: one value a round, of equal length.
        level: of the interval.
    """
    ratios = np.asarray(numerator) / np.asarray(denominator)  # [rounds]
    draws = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    medians = np.median(ratios[draws], axis=1)  # [resamples]
    tail = (1 - level) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(float(np.median(ratios)), float(low), float(high))


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of n items, with its percentile bootstrap interval over them.

    Args:
        statistic: of the items at some indices, [n].
        level: of the interval.
    """
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    tail = (1 - level) / 2
    low, high = np.quantile([statistic(draw) for draw in draws], [tail, 1 - tail])
    return Interval(statistic(np.arange(n)), float(low), float(high))

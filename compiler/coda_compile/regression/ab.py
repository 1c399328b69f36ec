"""An A/B of two bundles in turns, with the noise measured as A against a second process of A.

Where a process's memory happens to lie shifts all its timings by 1-3 %, however many rounds are run. So the sample is
the launch: three fresh processes, two of the baseline (A and A') and one of the candidate (B), opened and visited in
an order that changes from launch to launch. Within one, rounds are paired, so that drift cancels, and give two
numbers, medians over rounds of logarithms:

    change = log B - (log A + log A') / 2        itself = log A' - log A

Were the launches' shifts independent, these two would be uncorrelated: the noise is measured apart from the answer.
Intervals are mean ± m·s/√n over launches. A bootstrap of so few launches would be too narrow, so m is Student's, made
wider because we look after every launch and stop as soon as one interval decides: m is simulated so that, for normal
launches, the 95 % interval covers the truth at *all* looks together in 95 % of measurements (Pocock 1977, "Group
sequential methods in the design and analysis of clinical trials": the same nominal level at every look). Longer tails
than normal make the interval cover more, not less.

With the threshold ``by``, and noise = the end of A's interval against itself that lies further from 1:

    regression      the whole interval of B/A lies above 1 + by, and above 1 + noise
    no regression   the whole interval lies below 1 + by, and noise <= by; or it lies below 1 - noise
    cannot tell     anything else, after the most launches or the seconds that were allowed

So a truth on either side of the threshold is mistaken for the other with a probability of at most 2.5 %, and a
threshold below the noise passes nothing but a candidate that is faster beyond the noise.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from coda_compile.bench.machine import thread_count
from coda_compile.bench.turns import Contender, MeasuringError, Worker, started, warm_up
from coda_compile.regression.verdict import Verdict
from coda_compile.statistics import Interval
from coda_targets import Bundle
from coda_targets.signature import Arrays, Signature

FIRST_LOOK = 4  # launches; Student's t of fewer is too wide to decide anything
MOST_LAUNCHES = 32
BUDGET_SECONDS = 300.0
# A shared machine's speed drifts within tenths of a second, and turns that lie closer share more of it: on one, rounds
# of single runs told as much as rounds of four in half the time.
TURN_SECONDS = 0.02
LAUNCH_SECONDS = 2.0  # of a launch's rounds; starting its processes takes as long
ROUNDS = range(10, 21)  # the fewest and the most of a launch
_LEVEL = 0.95
_PATHS = 100_000
_NAMES = ("baseline", "baseline again", "candidate")


@dataclass(frozen=True)
class Launch:
    """What three fresh processes gave.

    Attributes:
        change: log of candidate over baseline, the mean of the baseline's two processes.
        itself: log of the baseline's second process over its first.
        baseline_seconds, candidate_seconds: medians of the rounds.
        rounds: how many there were.
    """

    change: float
    itself: float
    baseline_seconds: float
    candidate_seconds: float
    rounds: int


@dataclass(frozen=True)
class Estimate:
    """What the launches so far say.

    Attributes:
        ratio: latency of candidate over baseline; ``None`` before the first look, as is ``noise``.
        noise: the baseline against itself.
    """

    verdict: Verdict
    ratio: Interval | None
    noise: Interval | None

    @property
    def floor(self) -> float:
        """The noise as one number: how far from 1 the baseline's ratio to itself may lie, as a fraction."""
        return math.inf if self.noise is None else max(self.noise.high - 1, 1 / self.noise.low - 1)


@dataclass(frozen=True)
class Timing:
    """One measured comparison.

    Attributes:
        estimate: after the last launch.
        by: the threshold, as a fraction.
        launches: all of them.
        most: launches that were allowed.
        budget, took: seconds that were allowed and used.
        batch, tokens, threads: what was run, all tokens valid.
        load: the system's load average when measuring began.
    """

    estimate: Estimate
    by: float
    launches: tuple[Launch, ...]
    most: int
    budget: float
    took: float
    batch: int
    tokens: int
    threads: int
    load: float

    @property
    def rounds(self) -> float:
        """Median over launches."""
        return median(launch.rounds for launch in self.launches)

    @property
    def baseline_seconds(self) -> float:
        """Median over launches."""
        return median(launch.baseline_seconds for launch in self.launches)

    @property
    def candidate_seconds(self) -> float:
        """Median over launches."""
        return median(launch.candidate_seconds for launch in self.launches)


@cache
def multipliers(most: int) -> tuple[float, ...]:
    """What to multiply s/√n by after ``FIRST_LOOK``, … ``most`` launches, in order.

    Simulated, because that gives Student's quantiles and the price of repeated looks at once.
    """
    looks = np.arange(FIRST_LOOK, most + 1)
    draws = np.random.default_rng(0).standard_normal((_PATHS, most))
    means = np.cumsum(draws, axis=1)[:, looks - 1] / looks  # [paths, looks]
    variances = (np.cumsum(draws**2, axis=1)[:, looks - 1] - looks * means**2) / (looks - 1)
    t = np.abs(means) * np.sqrt(looks / variances)
    worst = np.argsort(np.argsort(t, axis=0), axis=0).max(axis=1)  # [paths] the most unusual look of each path
    rank = int(np.quantile(worst, _LEVEL))
    return tuple(float(x) for x in np.sort(t, axis=0)[rank])


def interval(logarithms: Sequence[float], most: int) -> Interval:
    """The ratio of some launches with the ends of its interval, valid at every look up to ``most`` launches."""
    n = len(logarithms)
    half = multipliers(most)[n - FIRST_LOOK] * float(np.std(logarithms, ddof=1)) / math.sqrt(n)
    middle = float(np.mean(logarithms))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def decide(launches: Sequence[Launch], *, by: float, most: int) -> Estimate:
    """The verdict that some launches allow.

    Args:
        by: the threshold, as a fraction.
        most: launches after which one would stop looking.
    """
    if len(launches) < FIRST_LOOK:
        return Estimate(Verdict.CANNOT_TELL, None, None)
    ratio = interval([launch.change for launch in launches], most)
    noise = interval([launch.itself for launch in launches], most)
    floor = Estimate(Verdict.CANNOT_TELL, ratio, noise).floor
    verdict = Verdict.CANNOT_TELL
    if ratio.low > 1 + max(by, floor):
        verdict = Verdict.REGRESSION
    elif (ratio.high < 1 + by and floor <= by) or ratio.high < 1 - floor:
        verdict = Verdict.NO_REGRESSION
    return Estimate(verdict, ratio, noise)


def compare_latency(
    baseline: Bundle | Path,
    candidate: Bundle | Path,
    signature: Signature,
    shape: tuple[int, int],
    *,
    by: float = 0.05,
    threads: int = 0,
    most: int = MOST_LAUNCHES,
    budget: float = BUDGET_SECONDS,
    seed: int = 0,
    on_launch: Callable[[int, Estimate], None] = lambda done, estimate: None,
) -> Timing:
    """Launch both bundles again and again until the interval decides.

    Args:
        baseline, candidate: bundles, whose opened variants are timed, or their folders.
        signature: what both take; random inputs are made from it.
        shape: batch and length of the input.
        by: the threshold, as a fraction.
        threads: of each process, 0 for all cores.
        most: launches, at least ``FIRST_LOOK``.
        budget: seconds; no launch is begun that would probably end after them.
        seed: of the order of processes.
        on_launch: called after each launch with their number and the estimate so far.

    Raises:
        MeasuringError: a bundle that cannot be opened or run.
        CodaError: more threads than cores.
    """
    threads = thread_count(threads)
    load = psutil.getloadavg()[0]
    inputs = signature.random(*shape)
    bundles = dict(zip(_NAMES, (baseline, baseline, candidate), strict=True))
    launches: list[Launch] = []
    estimate = decide(launches, by=by, most=most)
    began, longest = time.monotonic(), 0.0
    for names in _orders(seed):
        started_at = time.monotonic()
        if len(launches) == most or started_at - began + longest > budget:
            break
        contenders = [Contender.of_bundle(name, bundles[name]) for name in names]
        launches.append(_launch(contenders, inputs, threads))
        longest = max(longest, time.monotonic() - started_at)
        estimate = decide(launches, by=by, most=most)
        on_launch(len(launches), estimate)
        if estimate.verdict is not Verdict.CANNOT_TELL:
            break
    took = time.monotonic() - began
    return Timing(estimate, by, tuple(launches), most, budget, took, *shape, threads, load)


def _orders(seed: int) -> Iterator[tuple[str, ...]]:
    """Every order of the three processes equally often, in no order itself."""
    generator = random.Random(seed)
    while True:
        block = list(permutations(_NAMES))
        generator.shuffle(block)
        yield from block


def _launch(contenders: Sequence[Contender], inputs: Arrays, threads: int) -> Launch:
    with started(contenders, [inputs], threads=threads, on_failure=_fail) as workers:
        rounds = _rounds(workers)
    first, second, candidate = (np.log(rounds[name]) for name in _NAMES)  # [rounds] each
    return Launch(
        change=float(np.median(candidate - (first + second) / 2)),
        itself=float(np.median(second - first)),
        baseline_seconds=median([*rounds[_NAMES[0]], *rounds[_NAMES[1]]]),
        candidate_seconds=median(rounds[_NAMES[2]]),
        rounds=len(first),
    )


def _fail(error: MeasuringError) -> None:
    raise error


def _rounds(workers: Sequence[Worker]) -> dict[str, list[float]]:
    """Seconds by process and round; all get turns of the same form, or the turn would be compared, too."""
    turns = [warm_up(worker, 0, TURN_SECONDS)[1] for worker in workers]
    lead, counted = max(turn.lead for turn in turns), max(turn.counted for turn in turns)
    rounds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    began = time.monotonic()
    for done in range(ROUNDS[-1]):
        if done >= ROUNDS[0] and time.monotonic() - began > LAUNCH_SECONDS:
            break
        for worker in workers:
            rounds[worker.name].append(median(worker.run(0, lead + counted)[lead:]))
    return rounds

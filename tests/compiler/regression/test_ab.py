"""The estimate: on timings made up by a random generator, so that no test waits for a quiet machine."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.regression.results import launches

from coda_compile.bench.turns import MeasuringError, Turn
from coda_compile.errors import CodaError
from coda_compile.regression import ab
from coda_compile.regression.ab import (
    FIRST_LOOK,
    MOST_LAUNCHES,
    Estimate,
    Launch,
    compare_latency,
    decide,
    interval,
    multipliers,
)
from coda_compile.regression.verdict import Verdict
from coda_targets import Bundle
from coda_targets.modalities.text import text_signature

BY = 0.05
INPUTS = text_signature(100, 66, types=2), (1, 8)


def stopped(given: Sequence[Launch], by: float = BY) -> Estimate:
    """The estimate at the first look that decides, or at the last."""
    for n in range(FIRST_LOOK, len(given) + 1):
        estimate = decide(given[:n], by=by, most=MOST_LAUNCHES)
        if estimate.verdict is not Verdict.CANNOT_TELL:
            break
    return estimate


def rates(ratio: float, shift: float, runs: int = 300) -> Counter[Verdict]:
    return Counter(
        stopped(launches(MOST_LAUNCHES, ratio=ratio, shift=shift, seed=seed)).verdict for seed in range(runs)
    )


@pytest.mark.parametrize("shift", [0.005, 0.01, 0.02, 0.03, 0.05])
def test_a_bundle_against_itself_raises_no_alarm(shift: float):
    found = rates(1.0, shift)
    assert found[Verdict.REGRESSION] == 0
    if shift <= 0.02:
        assert found[Verdict.NO_REGRESSION] >= 0.97 * found.total()


@pytest.mark.parametrize("shift", [0.005, 0.01, 0.02, 0.03])
def test_ten_per_cent_are_caught(shift: float):
    found = rates(1.1, shift)
    assert found[Verdict.NO_REGRESSION] <= 0.01 * found.total()
    assert found[Verdict.REGRESSION] >= 0.9 * found.total()


def test_a_truth_at_the_threshold_is_mistaken_seldom_whichever_way():
    found = rates(1 + BY, 0.01, runs=600)
    assert found[Verdict.REGRESSION] <= 0.045 * found.total()  # 2.5 % and the error of counting 600
    assert found[Verdict.NO_REGRESSION] <= 0.045 * found.total()


def test_the_interval_covers_the_truth_at_all_looks_together():
    missed = 0
    for seed in range(600):
        changes = [launch.change for launch in launches(MOST_LAUNCHES, seed=seed)]
        looks = (interval(changes[:n], MOST_LAUNCHES) for n in range(FIRST_LOOK, MOST_LAUNCHES + 1))
        missed += any(not look.low <= 1 <= look.high for look in looks)
    assert 0.03 <= missed / 600 <= 0.075


def test_launches_that_are_now_and_then_far_off_raise_no_alarm():
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        shifts = generator.standard_t(2, (MOST_LAUNCHES, 3)) * 0.01
        given = [Launch(b - (a + again) / 2, again - a, 0.1, 0.1, 20) for a, again, b in shifts]
        alarms += stopped(given).verdict is Verdict.REGRESSION
    assert alarms == 0


def test_multipliers_are_students_where_there_is_one_look():
    assert multipliers(FIRST_LOOK) == pytest.approx([3.182], rel=0.02)  # t with 3 degrees of freedom, 97.5 %
    many = multipliers(MOST_LAUNCHES)
    assert len(many) == MOST_LAUNCHES - FIRST_LOOK + 1
    assert list(many) == sorted(many, reverse=True)
    assert many[-1] > 2.131  # t with 15: repeated looks have their price


def test_too_few_launches_tell_nothing():
    estimate = decide(launches(FIRST_LOOK - 1, ratio=3), by=BY, most=32)
    assert estimate == Estimate(Verdict.CANNOT_TELL, None, None)
    assert estimate.floor == float("inf")


def test_a_threshold_below_the_noise_passes_nothing():
    given = [Launch(0.001 * (-1) ** i, 0.1 * (-1) ** i, 0.1, 0.1, 20) for i in range(8)]
    estimate = decide(given, by=0.02, most=32)
    assert estimate.ratio is not None
    assert estimate.ratio.high < 1.02 < 1 + estimate.floor
    assert estimate.verdict is Verdict.CANNOT_TELL


def test_what_the_noise_cannot_hide_is_told_at_any_threshold():
    noisy = [
        Launch(change=0.0, itself=0.05 * (-1) ** i, baseline_seconds=0.1, candidate_seconds=0.1, rounds=40)
        for i in range(8)
    ]
    for ratio, verdict in ((2.0, Verdict.REGRESSION), (1.05, Verdict.CANNOT_TELL), (0.5, Verdict.NO_REGRESSION)):
        moved = [
            Launch(float(np.log(ratio)) + 0.001 * (i % 2), launch.itself, 0.1, 0.1, 40)
            for i, launch in enumerate(noisy)
        ]
        assert decide(moved, by=0.02, most=32).verdict is verdict


def test_a_baseline_that_differs_from_itself_counts_as_noise():
    given = [Launch(0.002 * (-1) ** i, 0.06 + 0.001 * (-1) ** i, 0.1, 0.1, 20) for i in range(8)]
    estimate = decide(given, by=BY, most=32)
    assert estimate.floor > 0.06
    assert estimate.verdict is Verdict.CANNOT_TELL


def test_every_order_of_processes_comes_equally_often():
    orders = list(islice(ab._orders(0), 12))
    assert Counter(orders) == dict.fromkeys(orders, 2)
    assert len(set(orders)) == 6
    assert orders == list(islice(ab._orders(0), 12)) != list(islice(ab._orders(1), 12))


# The real thing: only its form, for its figures are the machine's.


def test_a_real_comparison_gives_all_its_parts(compiled: Bundle):
    told: list[tuple[int, Estimate]] = []
    timing = compare_latency(
        *(compiled.folder,) * 2, *INPUTS, threads=1, most=4, on_launch=lambda *given: told.append(given)
    )
    assert len(timing.launches) == 4
    assert [done for done, _ in told] == [1, 2, 3, 4]
    assert told[-1][1] == timing.estimate
    assert timing.estimate.ratio is not None
    assert timing.estimate.noise is not None
    assert 0 < timing.estimate.ratio.low <= timing.estimate.ratio.middle <= timing.estimate.ratio.high
    assert timing.baseline_seconds > 0 < timing.candidate_seconds
    assert (timing.batch, timing.tokens, timing.threads) == (1, 8, 1)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Launch], float], None]:
    """Makes the coordinator take launches from a list, each so many seconds long."""

    def give(given: list[Launch], seconds: float) -> None:
        clock = [0.0]

        def launch(*_: object) -> Launch:
            clock[0] += seconds
            return given.pop(0)

        monkeypatch.setattr(ab, "_launch", launch)
        monkeypatch.setattr(ab.time, "monotonic", lambda: clock[0])

    return give


def test_it_stops_when_the_interval_decides(launched: Callable[[list[Launch], float], None]):
    launched(launches(16, ratio=1.5, shift=0.001), 1.0)
    timing = compare_latency(Path("a"), Path("b"), *INPUTS, threads=1)
    assert timing.estimate.verdict is Verdict.REGRESSION
    assert len(timing.launches) == FIRST_LOOK


def test_it_stops_after_the_most_launches(launched: Callable[[list[Launch], float], None]):
    launched(launches(32, ratio=1.05), 1.0)
    timing = compare_latency(Path("a"), Path("b"), *INPUTS, threads=1, most=6)
    assert (timing.estimate.verdict, len(timing.launches)) == (Verdict.CANNOT_TELL, 6)


def test_no_launch_is_begun_that_would_end_after_the_budget(launched: Callable[[list[Launch], float], None]):
    launched(launches(32, ratio=1.05), 10.0)
    timing = compare_latency(Path("a"), Path("b"), *INPUTS, threads=1, budget=35.0)
    assert (len(timing.launches), timing.took) == (3, 30.0)
    assert timing.estimate.ratio is None


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, 20), (0.05, 20), (0.125, 17), (9.0, 10)])
def test_all_processes_get_turns_of_the_same_form_for_some_seconds(
    seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]

    class FakeWorker:
        def __init__(self, name: str) -> None:
            self.name, self.asked = name, []

        def run(self, case: int, runs: int) -> list[float]:
            self.asked.append(runs)
            clock[0] += seconds / 2  # there are two, so a round takes as long as is said
            return [9.0, *[0.1] * (runs - 1)]

    turns = {"a": Turn(0, 1), "b": Turn(1, 3)}
    monkeypatch.setattr(ab, "warm_up", lambda worker, case, seconds: (0.0, turns[worker.name]))
    monkeypatch.setattr(ab.time, "monotonic", lambda: clock[0])
    workers = [FakeWorker("a"), FakeWorker("b")]
    assert ab._rounds(workers) == dict.fromkeys("ab", [0.1] * expected)
    assert [worker.asked for worker in workers] == [[4] * expected] * 2


def test_a_bundle_that_cannot_run_is_named(compiled: Bundle, tmp_path: Path):
    with pytest.raises(MeasuringError, match=r"^candidate cannot be measured: .*is no bundle"):
        compare_latency(compiled.folder, tmp_path, *INPUTS, threads=1)


def test_more_threads_than_cores_are_refused(compiled: Bundle):
    with pytest.raises(CodaError, match="measure the scheduler"):
        compare_latency(compiled.folder, compiled.folder, *INPUTS, threads=10_000)

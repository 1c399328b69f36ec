"""check(): compare facts, then time both bundles until an interval decides."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path

from coda_compile.bench.machine import Machine, this_machine, thread_count, usable_cores
from coda_compile.errors import CodaError, as_sentences
from coda_compile.regression.ab import (
    BUDGET_SECONDS,
    FIRST_LOOK,
    MOST_LAUNCHES,
    Estimate,
    Timing,
    compare_latency,
)
from coda_compile.regression.facts import Difference, Facts, compare, read_facts, require_comparable
from coda_compile.regression.verdict import Verdict
from coda_compile.statistics import Interval
from coda_targets import Bundle
from coda_targets.signature import Signature

BY = 0.05
_MOST = 0.99  # slow-down that can be accepted, of those that have two digits
_BUSY = 0.5  # load average of a core at which the machine has other work to do


@dataclass(frozen=True)
class CheckResult:
    """What the gate found.

    Attributes:
        verdict: with its exit code.
        reason: one sentence.
        advice: what would help, where the check cannot tell.
        bundle, baseline: as the caller names them.
        by: the threshold, as a fraction.
        differences: deterministic ones, regressions first.
        facts, baseline_facts: what they were taken from.
        timing: ``None`` where nothing was timed.
        machine: where all this holds.
    """

    verdict: Verdict
    reason: str
    advice: tuple[str, ...]
    bundle: str
    baseline: str
    by: float
    differences: tuple[Difference, ...]
    facts: Facts
    baseline_facts: Facts
    timing: Timing | None
    machine: Machine


@as_sentences()
def check(
    bundle: Bundle | Path | str,
    baseline: Bundle | Path | str,
    *,
    by: float = BY,
    batch: int = 1,
    tokens: int | None = None,
    threads: int = 0,
    launches: int = MOST_LAUNCHES,
    budget: float = BUDGET_SECONDS,
    baseline_name: str | None = None,
    on_launch: Callable[[int, Estimate], None] = lambda done, estimate: None,
) -> CheckResult:
    """Decide whether a bundle is slower than its baseline.

    A deterministic regression decides at once, without a clock: what it says does not depend on the machine.

    Args:
        bundle, baseline: opened, or their folders.
        by: how much slower is accepted, as a fraction.
        batch, tokens: shape of the timed input, by default one of the longest length.
        threads: of each process, 0 for all cores.
        launches: the most that are timed, at least ``FIRST_LOOK``.
        budget: the most seconds that are timed.
        baseline_name: instead of its folder, in what is reported.
        on_launch: called after each launch with their number and the estimate so far.

    Raises:
        CodaError: a bundle that is damaged, that cannot be run, or that does another job than the baseline; or an
            option out of its range.
    """
    candidate, old = (item if isinstance(item, Bundle) else Bundle(item) for item in (bundle, baseline))
    require_comparable(old, candidate)
    signature = candidate.manifest.signature
    longest = signature.max_length
    _require_options(by, batch, longest if tokens is None else tokens, signature, launches, budget)
    thread_count(threads)
    for side in (old, candidate):
        side.check()
    before, after = read_facts(old), read_facts(candidate)
    result = CheckResult(
        verdict=Verdict.CANNOT_TELL,
        reason="",
        advice=(),
        bundle=str(candidate.folder),
        baseline=baseline_name or str(old.folder),
        by=by,
        differences=compare(before, after, by=by),
        facts=after,
        baseline_facts=before,
        timing=None,
        machine=this_machine(),
    )
    worse = [str(difference) for difference in result.differences if difference.regression]
    if worse:
        return replace(result, verdict=Verdict.REGRESSION, reason="; ".join(worse))
    if usable_cores() == 1:
        return replace(
            result,
            reason="this machine has one core, where whatever else runs lands in the timings: latency was not compared",
            advice=("use a machine with two cores or more",),
        )
    timing = compare_latency(
        old,
        candidate,
        signature.common(old.manifest.signature),
        (batch, tokens or longest),
        by=by,
        threads=threads,
        most=launches,
        budget=budget,
        on_launch=on_launch,
    )
    return replace(
        result,
        verdict=timing.estimate.verdict,
        reason=explain_timing(timing),
        advice=advise(timing, result.machine, longest),
        timing=timing,
    )


def _require_options(by: float, batch: int, tokens: int, signature: Signature, launches: int, budget: float) -> None:
    longest = signature.max_length
    if not 0 < by < 1:
        raise CodaError(f"the threshold is {by:g}, which is no fraction between 0 and 1: give 0.05 for 5 %")
    if batch < 1:
        raise CodaError(f"a batch of {batch} cannot be timed: give 1 or more")
    if not 1 <= tokens <= longest:
        raise CodaError(f"{tokens} {signature.unit} do not fit these bundles: they take 1 to {longest}")
    if launches < FIRST_LOOK:
        raise CodaError(f"{launches} launches are too few to tell anything: allow at least {FIRST_LOOK}")
    if not 0 < budget < inf:
        raise CodaError(f"a budget of {budget:g} seconds is none: give some seconds, as {BUDGET_SECONDS:g}")


def explain_timing(timing: Timing) -> str:
    """Why the clock says what it says, in one sentence."""
    estimate, threshold = timing.estimate, percent(timing.by)
    if estimate.ratio is None:
        done = len(timing.launches)
        return (
            f"{done} launch{'es' if done != 1 else ''} fitted into {timing.budget:g} s and {FIRST_LOOK} are the fewest "
            "that tell anything"
        )
    measured = f"latency {change(estimate.ratio.middle)} (95 % interval {ends(estimate.ratio)})"
    if estimate.verdict is Verdict.REGRESSION:
        over = max(timing.by, estimate.floor)
        what = "threshold" if over == timing.by else f"threshold of {threshold} and over the noise"
        return f"{measured}, over the {what} of {percent(over)}"
    if estimate.verdict is Verdict.NO_REGRESSION:
        return f"{measured}, under the threshold of {threshold}"
    if estimate.floor > timing.by:
        return (
            f"the threshold of {threshold} lies below the noise of this machine, {percent(estimate.floor)}: "
            f"the baseline against itself differs by {ends(estimate.noise or estimate.ratio)}"
        )
    return f"{measured}: the threshold of {threshold} lies inside the interval"


def advise(timing: Timing, machine: Machine, longest: int) -> tuple[str, ...]:
    """What would help a check that cannot tell, most effective first."""
    estimate = timing.estimate
    if estimate.verdict is not Verdict.CANNOT_TELL:
        return ()
    found = []
    if timing.load > _BUSY * machine.cores:
        found.append(f"end what else runs here: the load average was {timing.load:.1f} on {machine.cores} cores")
    if machine.governor not in (None, "performance"):
        found.append(f"fix the clock: the governor of the frequency is {machine.governor!r}, set it to 'performance'")
    if len(timing.launches) < timing.most:
        found.append(f"allow more time: --budget {timing.budget * 2:g}")
    else:
        found.append(f"allow more launches: --launches {timing.most * 2} --budget {timing.budget * 2:g}")
    if timing.tokens < longest:
        found.append(f"time longer inputs, whose noise is smaller: --tokens {longest}")
    if estimate.ratio is not None and timing.by < estimate.floor <= _MOST:
        found.append(f"ask for what this machine can hold now: --by {ceil(estimate.floor * 100) / 100:.2f}")
    found.append("use a machine that does nothing else")
    return tuple(found)


def percent(fraction: float) -> str:
    """5 %, or 2.5 %."""
    return f"{round(fraction * 100, 1):g} %"


def change(ratio: float) -> str:
    """A ratio as the change that it is: +2.5 %."""
    return f"{ratio - 1:+.1%}".replace("%", " %")


def ends(interval: Interval) -> str:
    """Both ends of an interval of ratios, as changes."""
    return f"{change(interval.low)} … {change(interval.high)}"

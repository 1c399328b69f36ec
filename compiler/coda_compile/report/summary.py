"""The top of the page: one verdict and the key figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from coda_compile.bench.entries import reduction_of
from coda_compile.bench.result import BenchResult, Measurement, variant_of
from coda_compile.bench.run import REFERENCE
from coda_compile.inspect.accuracy import Accuracy
from coda_compile.inspect.cost import fewer
from coda_compile.inspect.profile import Profile
from coda_compile.report.charts import name_of
from coda_compile.report.formats import interval, megabytes, milliseconds, percent, times, tiny
from coda_compile.statistics import Interval
from coda_compile.verify.parity import Tolerances
from coda_targets import Bundle
from coda_targets.fidelity import number
from coda_targets.manifest import Manifest


@dataclass(frozen=True)
class Card:
    """A key figure with what it is and under which conditions."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """The comparison that the page leads with: the longest text, one at a time, against the reference.

    Attributes:
        dense: of the reference.
        compiled: of the compiled model at ``reduction``.
        fastest: the fastest dense contender on the same input.
        bound: ratio of multiply-adds, ``None`` where the benchmark has none.
        own: whether ``reduction`` is the bundle's.
    """

    dense: Measurement
    compiled: Measurement
    fastest: Measurement
    reduction: str
    bound: float | None
    own: bool

    @property
    def speed_up(self) -> Interval:
        """Over the reference."""
        return self.dense.speed_up[self.reduction]


def reference_of(result: BenchResult) -> str | None:
    """The dense contender to compare with; ``None`` where only compiled models were measured."""
    dense = [m.contender for m in result.measurements if m.speed_up]
    return REFERENCE if REFERENCE in dense else next(iter(dense), None)


def headline(result: BenchResult, bundle: Bundle) -> Headline | None:
    """The comparison to lead with, ``None`` without a dense contender."""
    name = reference_of(result)
    if name is None:
        return None
    dense = max((m for m in result.measurements if m.contender == name), key=lambda m: (-m.batch, m.tokens))
    own = variant_of(reduction_of(bundle.manifest), bundle.variant.precision, bundle.variant.target)
    reduction = own if own in dense.speed_up else next(iter(dense.speed_up))
    same = [m for m in result.measurements if (m.batch, m.tokens) == (dense.batch, dense.tokens)]
    return Headline(
        dense,
        next(m for m in same if not m.speed_up and m.variant == reduction),
        min((m for m in same if m.speed_up), key=lambda m: m.summary.median),
        reduction,
        next(
            (
                b.ratio
                for b in result.bounds
                if (b.reduction, b.batch, b.tokens) == (reduction, dense.batch, dense.tokens)
            ),
            None,
        ),
        reduction == own,
    )


def verdict(found: Headline | None, result: BenchResult | None, manifest: Manifest) -> tuple[str, list[str]]:
    """One line, and what qualifies it."""
    if found is None or result is None:
        n, unit = manifest.signature.max_length, manifest.signature.unit
        ratio = fewer(manifest)
        how = "its latency against the dense model has not been measured"
        if ratio == 1:
            line = "The dense model: no layer routes" if manifest.layers else "A graph of another exporter"
            return line, [f"{how[:1].upper()}{how[1:]}."]
        return f"{times(ratio)} fewer multiply-adds than the dense model at {n} {unit}", [
            f"That is a bound and no measurement: {how}."
        ]
    value = found.speed_up
    line = f"{_compared(value)} the dense model at {found.dense.tokens} tokens"
    threads = f"{result.threads} thread{'s' if result.threads != 1 else ''}"
    ours, theirs = (milliseconds(m.summary.median) for m in (found.compiled, found.dense))
    facts = [
        f"Speed-up {times(value.middle)}, 95 % interval {interval(value)}: {ours} against {theirs} in "
        f"{name_of(found.dense)}, batch {found.dense.batch}, {threads}, r\u00a0=\u00a0{found.reduction}."
    ]
    if found.fastest.contender != found.dense.contender:
        other = found.fastest.speed_up[found.reduction]
        fastest = f"the fastest dense contender, {name_of(found.fastest)}"
        facts.append(f"{_compared(other)} {fastest}; 95 % interval {interval(other)}.")
    if not found.own:
        facts.append(f"The benchmark measured no model at this bundle's r = {reduction_of(manifest)}.")
    return line, facts


def _compared(value: Interval) -> str:
    """A speed-up in words, as far as its interval says."""
    if value.low > 1:
        return f"{times(value.middle)} faster than"
    return f"{times(1 / value.middle)} slower than" if value.high < 1 else "Neither faster nor slower than"


def cards(
    manifest: Manifest,
    found: Headline | None,
    profile: Profile,
    differences: Sequence[float],
    tolerances: Tolerances,
    accuracy: Accuracy | None,
) -> list[Card]:
    """The key figures."""
    n, unit = manifest.signature.max_length, manifest.signature.unit
    routed = [layer for layer in manifest.layers if layer.reduction != "1"]
    shown = []
    if found is not None:
        share = f", {percent(found.speed_up.middle / found.bound)} of the bound" if found.bound else ""
        shown.append(Card("speed-up", times(found.speed_up.middle), f"{interval(found.speed_up)}{share}"))
        shape = f"{found.compiled.batch} × {found.compiled.tokens} tokens"
        shown.append(Card("latency", milliseconds(found.compiled.summary.median), f"median, {shape}"))
        shown.append(Card("peak memory", megabytes(found.compiled.peak_bytes), "of the process that ran it"))
    else:
        note = f"{profile.batch} × {profile.tokens} tokens, with the profiler on"
        shown.append(Card("one run", milliseconds(profile.run_seconds), note))
    if manifest.layers:
        shown.append(Card("multiply-adds bound", times(fewer(manifest)), f"dense over compiled, at {n} {unit}"))
    if routed:
        fewest, most = (pick(layer.slots for layer in routed) for pick in (min, max))
        slots = f"{most}" if fewest == most else f"{fewest} to {most}"
        among = n + routed[0].prompt
        note = f"in {len(routed)} of {len(manifest.layers)} layers"
        shown.append(Card(f"{unit} routed", f"{slots} of {among}", note))
    if manifest.fidelity is not None:
        for figure in manifest.fidelity.figures[:2]:
            dense = "" if figure.dense is None else f"dense {number(figure.name, figure.dense)}, "
            low, high = number(figure.name, figure.low), number(figure.name, figure.high)
            label = f"{figure.name} in float32" if figure.dense is not None else f"{figure.name} as the dense model"
            note = f"{dense}{low} to {high}, {manifest.fidelity.texts:,} held-out texts"
            shown.append(Card(label, number(figure.name, figure.value), note))
    if accuracy is not None:
        right = accuracy.share
        note = f"{100 * right.low:.1f} to {100 * right.high:.1f}\u00a0%, {accuracy.texts:,} texts"
        shown.append(Card("accuracy", f"{100 * right.middle:.1f}\u00a0%", note))
    size = sum(file.bytes for file in manifest.files)
    shown.append(Card("bundle", megabytes(size), f"{len(manifest.files)} files"))
    if differences:
        shown.append(
            Card("largest difference", tiny(max(differences)), f"from torch; {tiny(tolerances.outputs)} is tolerated")
        )
    return shown

"""A benchmark in the terminal: one table per input, then the bound, then the skipped baselines."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median

from rich.table import Table

from coda_compile.bench.machine import this_machine, thread_count
from coda_compile.bench.result import BenchResult, Bound, Measurement
from coda_compile.bench.turns import Timings
from coda_compile.statistics import Interval, ratio_interval
from coda_compile.terminal import natural_width, out, whole

_WIDE = 120  # columns, from which on terminals wrap a line
_NOISY = 0.1  # spread of the runs of one contender that says more about the machine than about the contender


def show(result: BenchResult) -> None:
    """Print a result."""
    m = result.machine
    gpu = f"{m.gpu}, with " if m.gpu else ""
    governor = f", governor {m.governor}" if m.governor else ""
    out.print(
        f"{result.model} on {gpu}{m.cpu}, {m.cores} cores{governor}; {result.threads} threads, "
        f"{result.rounds} rounds in turns, a process each",
        soft_wrap=True,
    )
    if m.cores == 1:
        out.print("one core: whatever else runs lands in these timings; measure where there are two or more")
    if result.fidelity is not None:
        out.print(f"routed model, before it was compiled: {result.fidelity}", soft_wrap=True)
    for (batch, tokens), group in groupby(result.measurements, lambda x: (x.batch, x.tokens)):
        rows = sorted(group, key=lambda row: row.summary.median)
        for table in _latency(f"{batch} x {tokens} tokens, ms", rows):
            whole(table)
        for bound in result.bounds:
            if (bound.batch, bound.tokens) == (batch, tokens):
                out.print(f"  {_bound(bound)}", soft_wrap=True)
    first = (result.measurements[0].batch, result.measurements[0].tokens)
    whole(_footprint([row for row in result.measurements if (row.batch, row.tokens) == first]))
    rates = ", ".join(f"{name} {rate / 1e9:.0f} G" for name, rate in result.matrix_rates.items())
    if rates:
        out.print(f"this machine's own matrix product, multiply-adds a second: {rates}", soft_wrap=True)
    if noise := _noise(result.measurements):
        out.print(noise, soft_wrap=True)
    for skipped in result.skipped:
        help_ = f"; {skipped.install}" if skipped.install else ""
        out.print(f"not measured: {skipped.contender}: {skipped.reason}{help_}", soft_wrap=True)


def _latency(title: str, rows: list[Measurement]) -> list[Table]:
    """How long everyone takes and how many times faster compiled models are, in one table or, where it is wide, two."""
    variants = [row.variant for row in rows if not row.speed_up] if any(row.speed_up for row in rows) else []
    table = _times(title, rows, variants)
    if natural_width(table) <= _WIDE:
        return [table]
    below = _table("", "", "")
    for row in rows:
        for variant in variants:
            if variant in row.speed_up:
                below.add_row(_name(row), _faster(variant), interval(row.speed_up[variant]))
    return [_times(title, rows, []), below]


def _times(title: str, rows: list[Measurement], variants: list[str]) -> Table:
    table = _table(title, "median", "P90", "P99", "spread", "tokens/s", *map(_faster, variants))
    for row in rows:
        s = row.summary
        table.add_row(
            _name(row),
            *(_milliseconds(seconds) for seconds in (s.median, s.p90, s.p99)),
            f"{s.spread:.0%}",
            f"{row.tokens_per_second:,.0f}",
            *(interval(row.speed_up.get(v)) for v in variants),
        )
    return table


def _faster(variant: str) -> str:
    return f"r={variant} is faster"


def _milliseconds(seconds: float) -> str:
    """To a tenth, and what takes less than a millisecond to a thousandth."""
    return f"{seconds * 1e3:,.1f}" if seconds >= 1e-3 else f"{seconds * 1e3:.3f}"


def _noise(measurements: Sequence[Measurement]) -> str:
    """What to make of timings that lie far apart; empty where they do not."""
    worst = max(measurements, key=lambda row: row.summary.spread)
    if worst.summary.spread <= _NOISY:
        return ""
    return (
        f"noise: half of the runs of {_name(worst)} on {worst.batch} x {worst.tokens} tokens lie "
        f"{worst.summary.spread:.0%} of the median apart; trust intervals, not medians, and measure again when nothing "
        "else runs here, or with more --rounds"
    )


def _footprint(rows: list[Measurement]) -> Table:
    table = _table("session, memory and size", "open s", "first run ms", "peak MB", "file MB")
    for row in rows:
        table.add_row(
            _name(row),
            f"{row.opened_seconds:.2f}",
            f"{row.first_seconds * 1e3:,.0f}",
            f"{row.peak_bytes / 1e6:,.0f}" if row.peak_bytes else "unknown",
            f"{row.file_bytes / 1e6:,.1f}",
        )
    return table


def variants(title: str, timings: Mapping[str, Timings], reference: str, case: int = 0) -> None:
    """Print medians of variants on one input, and how many times as long each takes as one of them."""
    table, basis = _table(title, "median", f"time over {reference}"), timings[reference].rounds(case)
    for name, timing in timings.items():
        seconds = timing.rounds(case)
        more = None if name == reference else ratio_interval(seconds, basis)
        table.add_row(name, f"{median(seconds) * 1e3:.1f} ms", interval(more))
    whole(table)


def conditions(rounds: int, threads: int) -> None:
    """Print how and where variants were measured; ``threads`` as asked for."""
    machine = this_machine()
    out.print(
        f"medians of {rounds} rounds in turns, a process each, {thread_count(threads)} threads; {machine.cpu}, "
        f"{machine.cores} cores, {' '.join(machine.instruction_sets)}",
        soft_wrap=True,
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _name(row: Measurement) -> str:
    return row.contender if row.precision in row.contender else f"{row.contender} {row.precision}"


def interval(value: Interval | None) -> str:
    """``3.01x [2.95, 3.08]``, or nothing."""
    return "" if value is None else f"{value.middle:.2f}x [{value.low:.2f}, {value.high:.2f}]"


def _bound(bound: Bound) -> str:
    reached = "" if bound.reached is None else f", {bound.reached:.0%} of it reached against plain onnxruntime"
    return (
        f"r={bound.reduction}: multiply-adds bound {bound.ratio:.2f}x{reached}; "
        f"runs at {bound.rate:.0%} of the matrix product's fp32 rate"
    )

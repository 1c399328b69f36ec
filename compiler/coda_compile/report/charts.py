"""Figures of a benchmark: latency with intervals, speed-up with its bound, memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import plotly.graph_objects as go

from coda_compile.bench.result import BenchResult, Measurement
from coda_compile.report.formats import Table, input_shape, interval, megabytes, milliseconds, percent, times
from coda_compile.report.plots import NEUTRAL, SERIES, Bar, Plot, bars_figure, bars_height, escaped, layout
from coda_compile.statistics import Interval, ratio_interval


def name_of(row: Measurement) -> str:
    """A contender with its precision."""
    return row.contender if row.precision in row.contender else f"{row.contender} {row.precision}"


def latency_interval(row: Measurement) -> Interval:
    """Median seconds over rounds with its 95 % bootstrap interval."""
    return ratio_interval(row.rounds, [1.0] * len(row.rounds))


def latency(rows: Sequence[Measurement], key: str) -> Plot:
    """Every contender on one input, fastest first, with intervals."""
    rows = sorted(rows, key=lambda row: row.summary.median)
    middles = [latency_interval(row) for row in rows]
    variants = [row.variant for row in rows if not row.speed_up]
    table = Table(
        "Seconds of every counted run; intervals are 95 % bootstrap intervals of the median over rounds.",
        ("contender", "median", "interval", "P90", "P99", "tokens/s", *(f"r = {v} is faster" for v in variants)),
        [
            (
                name_of(row),
                milliseconds(row.summary.median),
                f"{middle.low * 1e3:.1f} to {middle.high * 1e3:.1f}",
                milliseconds(row.summary.p90),
                milliseconds(row.summary.p99),
                f"{row.tokens_per_second:,.0f}",
                *(_faster(row.speed_up.get(v)) for v in variants),
            )
            for row, middle in zip(rows, middles, strict=True)
        ],
    )
    bars = [
        Bar(name_of(row), m.middle * 1e3, milliseconds(m.middle), SERIES[0] if not row.speed_up else NEUTRAL)
        for row, m in zip(rows, middles, strict=True)
    ]
    figure = bars_figure(bars, "milliseconds")
    figure.data[0].error_x = {
        "type": "data",
        "symmetric": False,
        "array": [(m.high - m.middle) * 1e3 for m in middles],
        "arrayminus": [(m.middle - m.low) * 1e3 for m in middles],
        "color": "var(--ink)",
        "thickness": 1.5,
        "width": 4,
    }
    shape = input_shape(rows[0].batch, rows[0].tokens)
    return Plot(key, f"Latency of every contender on {shape}, fastest first", figure, table, bars_height(bars))


def _faster(value: Interval | None) -> str:
    return "" if value is None else f"{times(value.middle)} ({interval(value)})"


def speed_up(result: BenchResult, reference: str, *, against: str, batch: int) -> Plot:
    """Speed-up over one dense contender against length or r, and the multiply-adds bound.

    Args:
        reference: the dense contender.
        against: ``tokens`` or ``r``.
        batch: of the inputs.
    """
    dense = [m for m in result.measurements if m.contender == reference and m.batch == batch]
    bounds = {(b.reduction, b.tokens): b.ratio for b in result.bounds if b.batch == batch}
    found = (_point(against, m.tokens, r, value) for m in dense for r, value in m.speed_up.items())
    points = sorted((point for point in found if point is not None), key=lambda point: point.x)
    figure = go.Figure(layout=layout())
    for i, line in enumerate(dict.fromkeys(point.line for point in points)):
        on_it = [point for point in points if point.line == line]
        xs, colour = [point.x for point in on_it], SERIES[i % len(SERIES)]
        figure.add_trace(_measured(line, xs, [point.value for point in on_it], colour))
        figure.add_trace(_bound(f"bound, {line}", xs, [bounds.get((p.reduction, p.tokens)) for p in on_it], colour))
    ticks = sorted({point.x for point in points})
    names = [f"{tick:g}" for tick in ticks]
    title = "tokens" if against == "tokens" else "r"
    figure.update_xaxes(title=title, type="log", tickvals=ticks, ticktext=names, minor_ticks="")
    figure.update_yaxes(title="times faster", rangemode="tozero")
    table = Table(
        f"Measured against {reference}; the bound is the ratio of multiply-adds.",
        ("input", "r", "speed-up", "95 % interval", "bound", "reached"),
        [
            (
                input_shape(batch, point.tokens),
                point.reduction,
                times(point.value.middle),
                interval(point.value),
                "" if bound is None else times(bound),
                "" if bound is None else percent(point.value.middle / bound),
            )
            for point in points
            for bound in [bounds.get((point.reduction, point.tokens))]
        ],
    )
    what = "the length of the text" if against == "tokens" else "the reduction r"
    return Plot(f"speed-up-{against}", f"Speed-up over {reference} against {what}", figure, table, 380)


@dataclass(frozen=True)
class _Point:
    """A speed-up: which line it lies on, in a figure's own words, and where."""

    line: str
    x: float
    tokens: int
    reduction: str
    value: Interval


def _point(against: str, tokens: int, reduction: str, value: Interval) -> _Point | None:
    """``None`` for an r that has no place on an axis."""
    if against == "tokens":
        return _Point(f"r = {escaped(reduction)}", float(tokens), tokens, reduction, value)
    r = one_number(reduction)
    return None if r is None else _Point(f"{tokens} tokens", r, tokens, reduction, value)


def _measured(name: str, xs: list[Any], values: list[Interval], colour: str) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=xs,
        y=[value.middle for value in values],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [value.high - value.middle for value in values],
            "arrayminus": [value.middle - value.low for value in values],
            "thickness": 1.5,
            "width": 5,
        },
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        marker={"size": 9},
        hovertext=[f"{name}: {times(value.middle)}, {interval(value)}" for value in values],
        hoverinfo="text",
    )


def _bound(name: str, xs: list[Any], ratios: list[float | None], colour: str) -> go.Scatter:
    return go.Scatter(
        name=name,
        x=xs,
        y=ratios,
        mode="lines" if len(xs) > 1 else "markers",
        line={"color": colour, "width": 1.5, "dash": "dash"},
        marker={"symbol": "line-ew-open", "size": 22, "line": {"width": 2, "color": colour}},
        hovertext=["" if ratio is None else f"{name}: {times(ratio)}" for ratio in ratios],
        hoverinfo="text",
    )


def memory(rows: Sequence[Measurement]) -> Plot:
    """Peak memory and deployed size of every contender."""
    rows = sorted(rows, key=lambda row: row.peak_bytes)
    table = Table(
        "Peak resident memory of the process that ran it, and the size of the files that would be deployed.",
        ("contender", "peak memory", "files", "opened in", "first run"),
        [
            (
                name_of(row),
                megabytes(row.peak_bytes),
                megabytes(row.file_bytes),
                f"{row.opened_seconds:.2f} s",
                milliseconds(row.first_seconds),
            )
            for row in rows
        ],
    )
    bars = [
        Bar(
            name_of(row),
            row.peak_bytes / 1e6,
            f"{megabytes(row.peak_bytes)}, files {megabytes(row.file_bytes)}",
            NEUTRAL if row.speed_up else SERIES[0],
        )
        for row in rows
    ]
    label = "Peak memory of every contender, least first"
    return Plot("memory", label, bars_figure(bars, "megabytes, peak"), table, bars_height(bars))


def one_number(reduction: str) -> float | None:
    """r as a number; ``None`` where it differs from layer to layer."""
    try:
        return float(Fraction(reduction))
    except (ValueError, ZeroDivisionError):
        return None

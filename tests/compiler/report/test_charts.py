"""Figures from a made-up benchmark: what is drawn, and the table that says the same."""

from dataclasses import replace

import pytest
from tests.compiler.report.results import made_up

from coda_compile.bench.result import Bound
from coda_compile.report import charts
from coda_compile.statistics import Interval


def test_latency_is_sorted_and_has_intervals():
    rows = [m for m in made_up().measurements if m.tokens == 512]
    plot = charts.latency(rows, "latency-512")
    (bars,) = plot.figure.data
    assert list(bars.x) == sorted(bars.x)
    assert bars.x[0] == pytest.approx(107, abs=1)
    assert len(bars.error_x.array) == len(rows) == 6
    assert all(low >= 0 and high >= 0 for low, high in zip(bars.error_x.arrayminus, bars.error_x.array, strict=True))
    assert [row[0] for row in plot.table.rows] == [note.text.split("  ")[0] for note in plot.figure.layout.annotations]
    assert plot.table.columns[-2:] == ("r = 4 is faster", "r = 2 is faster")
    compiled = next(row for row in plot.table.rows if row[0].startswith("coda-compile r=4"))
    assert compiled[-2:] == ("", "")
    assert plot.label == "Latency of every contender on 1 × 512 tokens, fastest first"


def test_compiled_models_have_a_colour_of_their_own():
    rows = [m for m in made_up().measurements if m.tokens == 128]
    (bars,) = charts.latency(rows, "x").figure.data
    names = [row[0] for row in charts.latency(rows, "x").table.rows]
    own = {c for name, c in zip(names, bars.marker.color, strict=True) if name.startswith("coda-compile")}
    others = {c for name, c in zip(names, bars.marker.color, strict=True) if not name.startswith("coda-compile")}
    assert len(own) == len(others) == 1
    assert own != others


def test_speed_up_against_length_draws_the_bound_above():
    plot = charts.speed_up(made_up(), "onnxruntime", against="tokens", batch=1)
    lines = {trace.name: trace for trace in plot.figure.data}
    assert set(lines) == {"r = 2", "bound, r = 2", "r = 4", "bound, r = 4"}
    for r in ("2", "4"):
        measured, bound = lines[f"r = {r}"], lines[f"bound, r = {r}"]
        assert list(measured.x) == list(bound.x) == [128, 512]
        assert all(m < b for m, b in zip(measured.y, bound.y, strict=True))
        assert bound.line.dash == "dash"
        assert bound.line.color == measured.line.color
    assert ("1 × 512 tokens", "4") in [row[:2] for row in plot.table.rows]
    assert plot.table.rows[-1][-1] == "65\u00a0%"


def test_speed_up_against_r_puts_ratios_in_order_and_leaves_mixed_ones_out():
    result = made_up()
    value = Interval(1.5, 1.4, 1.6)
    dense = [replace(m, speed_up={"7/2": value, **m.speed_up, "2,4": value}) for m in result.measurements if m.speed_up]
    plot = charts.speed_up(replace(result, measurements=tuple(dense)), "onnxruntime", against="r", batch=1)
    measured = [trace for trace in plot.figure.data if not trace.name.startswith("bound")]
    assert [trace.name for trace in measured] == ["128 tokens", "512 tokens"]
    assert [list(trace.x) for trace in measured] == [[2, 3.5, 4]] * 2
    assert next(row for row in plot.table.rows if row[1] == "7/2")[-2:] == ("", "")  # no bound is known of it


def test_one_length_still_shows_its_bound():
    plot = charts.speed_up(made_up(tokens=(512,), reductions=("4",)), "onnxruntime", against="tokens", batch=1)
    assert [trace.mode for trace in plot.figure.data] == ["lines+markers", "markers"]


def test_other_batches_are_left_out():
    result = made_up()
    other = [replace(m, batch=8, speed_up=dict.fromkeys(m.speed_up, Interval(9, 9, 9))) for m in result.measurements]
    bounds = (*result.bounds, Bound("4", 8, 512, 9.9, None, 0.5))
    both = replace(result, measurements=(*result.measurements, *other), bounds=bounds)
    plot = charts.speed_up(both, "onnxruntime", against="tokens", batch=1)
    assert max(y for trace in plot.figure.data for y in trace.y) == pytest.approx(4.3)


def test_memory_is_sorted_and_unknown_where_the_system_does_not_tell():
    rows = [m for m in made_up().measurements if m.tokens == 128]
    plot = charts.memory([replace(rows[0], peak_bytes=0), *rows[1:]])
    assert [row[1] for row in plot.table.rows][:2] == ["unknown", "150.0 MB"]
    assert plot.table.rows[1][2] == "24.0 MB"


def test_names_are_no_markup():
    row = replace(made_up().measurements[0], contender='<a href="x">r</a> fp32')
    plot = charts.latency([row], "x")
    assert plot.figure.layout.annotations[0].text.startswith('&lt;a href="x"&gt;r&lt;/a&gt; fp32')
    assert "<a" not in plot.figure.data[0].hovertext[0]


@pytest.mark.parametrize(("text", "value"), [("4", 4.0), ("7/2", 3.5), ("2,4", None), ("many", None), ("1/0", None)])
def test_one_number(text: str, value: float | None):
    assert charts.one_number(text) == value

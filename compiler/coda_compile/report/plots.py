"""What all figures share. Colours are names of the page's CSS variables, so that a figure follows light and dark."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from coda_compile.report.formats import Table

SERIES = tuple(f"var(--series-{i})" for i in range(1, 7))
NEUTRAL = "var(--bar)"


@dataclass(frozen=True)
class Plot:
    """A figure, and the same as a table for those who do not look at it.

    Attributes:
        key: unique on the page.
        label: what the figure shows, in a sentence.
        height: pixels.
        least_width: pixels below which the figure scrolls in its own box; 0 to shrink with the page.
    """

    key: str
    label: str
    figure: go.Figure
    table: Table
    height: int
    least_width: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar with its name above it, so that long names need no margin on a phone."""

    name: str
    value: float
    text: str
    colour: str


def bars_figure(bars: Sequence[Bar], axis: str) -> go.Figure:
    figure = go.Figure(layout=layout(bargap=0.62, showlegend=False))
    figure.add_trace(
        go.Bar(
            orientation="h",
            x=[bar.value for bar in bars],
            y=list(range(len(bars))),
            marker={"color": [bar.colour for bar in bars], "line": {"width": 0}},
            hovertext=[f"{escaped(bar.name)}: {escaped(bar.text)}" for bar in bars],
            hoverinfo="text",
        )
    )
    for i, bar in enumerate(bars):
        row_label(figure, i, f"{escaped(bar.name)}  <b>{escaped(bar.text)}</b>")
    figure.update_xaxes(title=axis, rangemode="tozero")
    figure.update_yaxes(visible=False, range=[len(bars) - 0.6, -0.75])
    return figure


def bars_height(bars: Sequence[Bar]) -> int:
    return 60 + 42 * len(bars)


def row_label(figure: go.Figure, row: int, text: str) -> None:
    figure.add_annotation(
        x=0, xref="paper", xanchor="left", y=row, yanchor="bottom", yshift=8, text=text, showarrow=False, align="left"
    )


def layout(**more: Any) -> dict[str, Any]:
    axis = {
        "automargin": True,
        "gridcolor": "var(--line)",
        "zerolinecolor": "var(--line)",
        "linecolor": "var(--line)",
        "fixedrange": True,
        "title": {"standoff": 8},
    }
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
        "hoverlabel": {"bgcolor": "var(--raised)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "margin": {"l": 8, "r": 16, "t": 12, "b": 40},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "dragmode": False,
        "xaxis": axis,
        "yaxis": axis,
        **more,
    }


def escaped(value: Any) -> str:
    """Plotly reads a little HTML in its texts: what others wrote is none."""
    return html.escape(str(value), quote=False)

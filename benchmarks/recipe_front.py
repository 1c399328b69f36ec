"""Draw accuracy against multiply-adds for every row of a table in docs/recipe.md that has both.

python benchmarks/recipe_front.py docs/recipe.md docs/front.png

Needs Chromium, which takes the picture.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import click
import plotly.graph_objects as go

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from picture import take

_ROW = re.compile(
    r"^\| (?P<name>[^|]*)\| (?P<what>[^|]*)\| (?P<accuracy>[\d.]+) %[^|]*\|[^|(]*\| (?P<cost>[\d.]+) G \|"
)
_SIZE = (900, 560)


_BELOW = 4  # points that are shown below the lowest of the front


class Point(NamedTuple):
    """One model: its row's name, what it is, mean accuracy in percent, and multiply-adds in G."""

    name: str
    what: str
    accuracy: float
    cost: float


def points(markdown: str) -> list[Point]:
    """Every row with an accuracy of all seeds and a cost."""
    found = (_ROW.match(line) for line in markdown.splitlines())
    return [Point(m["name"].strip(), m["what"].strip(" …"), float(m["accuracy"]), float(m["cost"])) for m in found if m]


def front(every: list[Point]) -> list[Point]:
    """Those that none beats in both, cheapest first."""
    return [
        p
        for p in sorted(every, key=lambda p: p.cost)
        if not any(q.cost <= p.cost and q.accuracy > p.accuracy for q in every)
    ]


def label(place: tuple[float, float], every: list[Point], best: list[Point]) -> str:
    """Names of the rows that share a place; what is on the front is named in any case."""
    here = [p for p in every if (p.cost, p.accuracy) == place]
    return ", ".join([p.name for p in here if p.name] or [p.what for p in here if p in best])


def figure(every: list[Point]) -> go.Figure:
    """Points with their names, and the front as a line."""
    best, cheapest, dearest = front(every), min(p.cost for p in every), max(p.cost for p in every)
    places = sorted({(p.cost, p.accuracy) for p in every})
    leading = {(p.cost, p.accuracy) for p in best}
    looks = {"template": "plotly_white", "margin": {"t": 20, "r": 20}, "showlegend": False}
    drawn = go.Figure(layout={**looks, "width": _SIZE[0], "height": _SIZE[1]})
    drawn.add_scatter(x=[p.cost for p in best], y=[p.accuracy for p in best], mode="lines", line={"color": "#9aa5b1"})
    drawn.add_scatter(
        x=[cost for cost, _ in places],
        y=[accuracy for _, accuracy in places],
        text=[label(place, every, best) for place in places],
        mode="markers+text",
        textposition=[
            "top left" if place in leading else "bottom left" if place[0] > dearest / 2 else "bottom right"
            for place in places
        ],
        marker={"size": 9, "color": ["#1f6feb" if place in leading else "#9aa5b1" for place in places]},
    )
    drawn.update_xaxes(title="multiply-adds for 512 tokens, G", range=[cheapest * 0.5, dearest * 1.12])
    accuracies = [p.accuracy for p in best]
    drawn.update_yaxes(
        title="held-out accuracy, mean of the seeds, %", range=[min(accuracies) - _BELOW, max(accuracies) + 0.5]
    )
    return drawn


@click.command(help=__doc__)
@click.argument("table", type=click.Path(exists=True, path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def main(table: Path, picture: Path) -> None:
    every = points(table.read_text("utf-8"))
    take(figure(every), picture)
    click.echo(f"{picture}: {len(every)} models")


if __name__ == "__main__":
    main()

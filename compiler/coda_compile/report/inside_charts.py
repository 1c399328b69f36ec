"""Figures of the bundle itself: time, parity with torch, routed words."""

from collections.abc import Sequence

import plotly.graph_objects as go

from coda_compile.inspect.predict import RoutedWords
from coda_compile.inspect.profile import Profile
from coda_compile.report.formats import Table, milliseconds, percent, tiny
from coda_compile.report.plots import NEUTRAL, SERIES, Bar, Plot, bars_figure, bars_height, escaped, layout, row_label
from coda_compile.verify.parity import CaseParity, Tolerances

_ROLES = {
    "attention": ("attention", "key_value"),
    "feed-forward": ("feed_forward",),
    "routing": ("routing", "router"),
    "adapter": ("adapter", "stand_in"),  # either is what stands beside a layer
    "norms": ("norm",),
}
_MOST_OPERATORS = 10


def time_by_layer(profile: Profile) -> Plot:
    """Milliseconds of every layer, split by role."""
    numbers = sorted({k.place.layer for k in profile.kernels if k.place and k.place.layer is not None})
    layers = [*numbers, None]
    spent: dict[tuple[int | None, str], float] = {}
    for kernel in profile.kernels:
        if kernel.place is not None:
            role = next((name for name, roles in _ROLES.items() if kernel.place.role in roles), "other")
            spent[kernel.place.layer, role] = spent.get((kernel.place.layer, role), 0.0) + kernel.seconds
    names = ["outside" if layer is None else str(layer) for layer in layers]
    roles = (*_ROLES, "other")
    figure = go.Figure(layout=layout(barmode="stack", bargap=0.25))
    for role, colour in zip(roles, SERIES, strict=True):
        seconds = [spent.get((layer, role), 0.0) for layer in layers]
        figure.add_trace(
            go.Bar(
                name=role,
                orientation="h",
                x=[value * 1e3 for value in seconds],
                y=names,
                marker={"color": colour, "line": {"width": 0}},
                hovertext=[
                    f"{name}: {role}, {milliseconds(value)}" for name, value in zip(names, seconds, strict=True)
                ],
                hoverinfo="text",
            )
        )
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(title="milliseconds a run")
    figure.update_yaxes(title="layer", type="category", autorange="reversed")
    table = Table(
        "Medians of kernels; 'outside' are embeddings and head.",
        ("layer", *roles, "sum", "share"),
        [
            (
                name,
                *(f"{spent.get((layer, role), 0.0) * 1e3:.2f}" for role in roles),
                milliseconds(whole := sum(spent.get((layer, role), 0.0) for role in roles)),
                percent(whole / profile.kernel_seconds),
            )
            for layer, name in zip(layers, names, strict=True)
        ],
    )
    return Plot("time-layers", "Time of every layer, split by role", figure, table, 130 + 34 * len(layers))


def time_by_operator(profile: Profile) -> Plot:
    """Milliseconds of every operator, those of one inlined CoDA operator together."""
    spent: dict[str, tuple[float, int]] = {}
    for kernel in profile.kernels:
        body = kernel.place.function if kernel.place else None
        name = f"{body} (inlined)" if body else kernel.operator
        seconds, count = spent.get(name, (0.0, 0))
        spent[name] = (seconds + kernel.seconds, count + 1)
    ranked = sorted(spent.items(), key=lambda item: -item[1][0])
    whole = profile.kernel_seconds
    table = Table(
        "Medians of kernels; the kernels of an inlined CoDA operator count for that operator.",
        ("operator", "kernels", "time", "share"),
        [(name, str(count), milliseconds(value), percent(value / whole)) for name, (value, count) in ranked],
    )
    shown = [(name, value) for name, (value, _) in ranked[:_MOST_OPERATORS]]
    rest = sum(value for _, (value, _) in ranked[_MOST_OPERATORS:])
    shown += [(f"{len(ranked) - _MOST_OPERATORS} others", rest)] if rest else []
    bars = [
        Bar(
            name,
            value * 1e3,
            f"{milliseconds(value)}, {percent(value / whole)}",
            SERIES[2] if name.endswith("(inlined)") else NEUTRAL,
        )
        for name, value in shown
    ]
    label = "Time of every operator, most first"
    return Plot("time-operators", label, bars_figure(bars, "milliseconds a run"), table, bars_height(bars))


def parity(cases: Sequence[CaseParity], tolerances: Tolerances) -> Plot:
    """Differences from torch against what is tolerated, and the margins that routing decisions had."""
    names = [case.case for case in cases]
    scores = [case.scores for case in cases]
    outputs = [max(case.outputs.values(), default=0.0) for case in cases]
    margins = [case.narrowest for case in cases]
    figure = go.Figure(layout=layout())
    for label, values, symbol, colour in (
        ("difference of scores", scores, "circle", SERIES[0]),
        ("difference of outputs", outputs, "square", SERIES[1]),
        ("narrowest margin", margins, "diamond-open", SERIES[3]),
    ):
        figure.add_trace(
            go.Scatter(
                name=label,
                x=[value or None for value in values],  # a logarithmic axis has no zero
                y=list(range(len(names))),
                mode="markers",
                marker={"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2, "color": colour}},
                hovertext=[f"{escaped(n)}: {label} {tiny(v or 0)}" for n, v in zip(names, values, strict=True)],
                hoverinfo="text",
            )
        )
    for value in (tolerances.scores, tolerances.outputs):
        figure.add_vline(x=value, line={"color": "var(--muted)", "width": 1, "dash": "dot"})
    for i, name in enumerate(names):
        row_label(figure, i, escaped(name))
    figure.update_xaxes(type="log", exponentformat="power", dtick=1, title="absolute")
    figure.update_yaxes(visible=False, range=[len(names) - 0.5, -0.9])
    table = Table(
        f"Tolerated: scores {tiny(tolerances.scores)}, gates {tiny(tolerances.gates)}, outputs "
        f"{tiny(tolerances.outputs)}, each times the largest value where that exceeds 1.",
        ("input", "scores", "gates", "outputs", "narrowest margin", "ties"),
        [
            (
                name,
                tiny(score),
                tiny(case.gates),
                tiny(output),
                "nothing left out" if case.narrowest is None else tiny(case.narrowest),
                str(len(case.ties)),
            )
            for name, score, output, case in zip(names, scores, outputs, cases, strict=True)
        ],
    )
    label = "Differences from torch and routing margins, for every verified input"
    return Plot("parity", label, figure, table, 130 + 40 * len(names))


def routing(words: RoutedWords, shown: int) -> Plot:
    """Layers down, words across; a filled cell is a word that the layer sent through its heavy path.

    Args:
        shown: how many words, from the first, are drawn; the table has all of them.
    """
    drawn = words.words[:shown]
    layers = [layer for layer, _ in words.layers]
    flags = [[int(heavy) for heavy in routed[:shown]] for _, routed in words.layers]
    figure = go.Figure(layout=layout())
    figure.add_trace(
        go.Heatmap(
            z=flags,
            x=list(range(len(drawn))),
            y=[str(layer) for layer in layers],
            zmin=0,
            zmax=1,
            colorscale=[[0, "var(--cell)"], [1, SERIES[0]]],
            showscale=False,
            xgap=2,
            ygap=2,
            hovertext=[
                [f"layer {layer}: {escaped(word)}, {'heavy' if heavy else 'light'} path" for word, heavy in pairs]
                for layer, pairs in zip(layers, (zip(drawn, row, strict=True) for row in flags), strict=True)
            ],
            hoverinfo="text",
        )
    )
    figure.update_xaxes(
        tickvals=list(range(len(drawn))),
        ticktext=[escaped(word) for word in drawn],
        tickangle=-90,
        tickfont={"size": 11},
        ticks="",
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(title="layer", type="category", autorange="reversed", showgrid=False)
    table = Table(
        "Words that each layer sent through its heavy path; a word counts when any of its tokens did.",
        ("layer", "words", "which"),
        [
            (
                str(layer),
                f"{sum(routed)} of {len(routed)}",
                " ".join(word for word, heavy in zip(words.words, routed, strict=True) if heavy),
            )
            for layer, routed in words.layers
        ],
        names=3,
    )
    height = 150 + 30 * len(layers)
    return Plot("routing", "Which words each layer routes", figure, table, height, least_width=60 + 13 * len(drawn))

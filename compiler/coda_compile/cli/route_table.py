"""Routed models in the terminal: what each agrees with, costs and is worth, and the command to go on with."""

import shlex

from rich.table import Table

from coda_compile.statistics import Interval
from coda_compile.terminal import out, whole
from coda_compile.tune.agreement import MAIN_FIGURES, Figures
from coda_compile.tune.budget import Chosen
from coda_compile.tune.held_out import Routed
from coda_compile.tune.route import Front
from coda_compile.tune.route_options import spelt
from coda_targets.fidelity import number, with_interval

_BEARABLE = 3  # points of agreement


def show(front: Front) -> None:
    """Print a front."""
    if front.chosen is not None:
        out.print(_choice(front.chosen), soft_wrap=True)
    out.print(
        f"{front.held_out} held-out texts of {front.tokens} tokens at the median, 95 % intervals; "
        f"fitted on {front.fitted_on} others",
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    one = front.routed[0]
    lost = [] if one.lost is None else ["points lost"]
    names = [*one.agreement, *one.accuracy, *lost, "multiply-adds", "fitted in", "file"]
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=True)
    accuracy = [shown(name, value) for name, value in front.accuracy.items()]
    table.add_row("dense", *[""] * len(one.agreement), *accuracy, *[""] * len(lost), "100%", "", "")
    for routed in front.routed:
        table.add_row(f"r={routed.reduction}", *_figures(routed))
    whole(table)
    for routed in front.routed:
        if routed.fitted is not None:
            out.print(_gained(routed, routed.fitted), soft_wrap=True)
    if front.chosen is None:
        for routed in front.routed:
            if advice := _advice(routed):
                out.print(advice, soft_wrap=True)
    for routed in front.routed:
        command = shlex.join(["coda-compile", str(routed.path), *_backbone(front)])
        out.print(f"next: {command}", soft_wrap=True)


def _choice(chosen: Chosen) -> str:
    """r by layer and what is expected of it."""
    r, share = spelt(chosen.choice.reductions), f"{chosen.choice.share:.0%} of the multiply-adds"
    expected = f"{chosen.figure} {number(chosen.figure, chosen.expected)}"
    if chosen.kept_aside:
        on = f"{chosen.kept_aside} texts kept aside"
        return f"chosen: r={r} by layer, {share}, of {chosen.tried} tried; expected: {expected}, as on {on}"
    return f"chosen: r={r} by layer, {share}; expected: {expected}, where each layer loses what it loses alone"


def _advice(routed: Routed) -> str:
    """What to do about a model that surely loses more than most can bear; empty where it does not."""
    figure = next(name for name in MAIN_FIGURES.values() if name in routed.agreement)
    value = routed.agreement[figure]
    if value.high >= 1 - _BEARABLE / 100:
        return ""
    return (
        f"r={routed.reduction} loses {100 * (1 - value.middle):.1f} points of {figure}: "
        f"--accuracy-budget {_BEARABLE} looks for the cheapest r by layer that loses {_BEARABLE} at most"
    )


def _gained(routed: Routed, fitted: Figures) -> str:
    """What steps brought."""
    changes = [
        f"{name} {number(name, fitted[name].middle)} before, {number(name, now.middle)} after"
        for name, now in routed.agreement.items()
    ]
    return f"steps, r={routed.reduction}: {'; '.join(changes)}"


def _figures(routed: Routed) -> list[str]:
    figures = [shown(name, value) for name, value in (routed.agreement | routed.accuracy).items()]
    if routed.lost is not None:
        figures.append(f"{routed.lost.middle:+.1f} [{routed.lost.low:+.1f}, {routed.lost.high:+.1f}]")
    return [*figures, f"{routed.share:.0%}", f"{routed.seconds:,.0f} s", str(routed.path)]


def shown(name: str, value: Interval) -> str:
    """A figure with its interval."""
    return with_interval(name, value.middle, value.low, value.high)


def _backbone(front: Front) -> list[str]:
    return [] if front.backbone is None else ["--backbone", str(front.backbone)]

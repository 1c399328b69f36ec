"""A trained adapter in the terminal: what it is worth beside a linear model, and the commands to go on with."""

import shlex
from pathlib import Path

from rich.table import Table

from coda_compile.cli import route_table
from coda_compile.terminal import out, whole
from coda_compile.tune.train import Trained
from coda_targets.manifest import MULTI_LABEL, REGRESSION


def show(trained: Trained, data: Path, backbone: str | None) -> None:
    """Print what training gave.

    Args:
        data: that it was trained on.
        backbone: of a delta, to be given again.
    """
    out.print(
        f"{trained.held_out} held-out texts of {trained.tokens} tokens at the median, {_learned(trained)}, "
        f"95 % intervals; trained on {trained.trained_on} others",
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in (*trained.accuracy, "trained in", "file"):
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=True)
    if trained.baseline is not None:
        figures = [route_table.shown(name, value) for name, value in trained.baseline.items()]
        table.add_row("linear model on words", *figures, "", "")
    figures = [route_table.shown(name, value) for name, value in trained.accuracy.items()]
    seconds = "" if trained.seconds is None else f"{trained.seconds:,.0f} s"
    table.add_row("dense adapter", *figures, seconds, str(trained.path))
    whole(table)
    if trained.baseline is None:
        out.print(
            'a linear model to compare with needs scikit-learn: pip install "coda-compile[train]"', soft_wrap=True
        )
    if trained.front is not None:
        out.print()
        route_table.show(trained.front)
        return
    again = [] if backbone is None else ["--backbone", backbone]
    route = ["coda-compile", "route", str(trained.path), "--texts", str(data), *again]
    out.print(f"next: {shlex.join(['coda-compile', str(trained.path), *again])}", soft_wrap=True)
    out.print(f"or:   {shlex.join(route)}  (better on texts that it was not trained on)", soft_wrap=True)


def _learned(trained: Trained) -> str:
    if trained.problem_type == REGRESSION:
        return "a number each"
    return f"{trained.classes} {'labels' if trained.problem_type == MULTI_LABEL else 'classes'}"

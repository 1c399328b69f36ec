"""The terminal: where output goes, progress, and tables; silent about progress when piped."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.status import Status
from rich.table import Table
from rich.text import Text

_LONG = 100  # seconds, from which on minutes are counted
_ANY_WIDTH = 10_000  # columns, more than any table has
# Labels, folders and words are anyone's text: none of it is markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


class Progress:
    """Stages, ticked with their times as they end."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._shown: Status | None = None
        self._counting: tuple[str, int, float] | None = None  # what, from how many steps on, since when

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage while it lasts."""
        began, self._counting = time.perf_counter(), None
        if err.is_terminal:
            with err.status(f"{name} …") as self._shown:
                yield
            self._shown = None
        else:
            yield
        took = time.perf_counter() - began
        self.seconds += took
        if err.is_terminal:
            err.print(Text.assemble(("✓", "green"), f" {name:<8} {took:6.1f} s"))

    def step(self, what: str, done: int, steps: int) -> None:
        """Say how far the stage that lasts has come, and how long it will take at this rate."""
        if self._shown is not None:
            self._shown.update(f"{what}, {done} of {steps}{self._left(what, done, steps)} …")

    def _left(self, what: str, done: int, steps: int) -> str:
        now, what = time.perf_counter(), what.partition(",")[0]  # behind a comma stands what changes, such as a loss
        if self._counting is None or self._counting[0] != what or done <= self._counting[1]:
            self._counting = (what, done, now)
            return ""
        _, first, began = self._counting
        seconds = (now - began) / (done - first) * (steps - done)
        return f", {seconds:.0f} s left" if seconds < _LONG else f", {seconds / 60:.0f} min left"


def natural_width(table: Table) -> int:
    """Columns that a table takes where nothing is cut."""
    return Measurement.get(out, out.options.update(max_width=_ANY_WIDTH), table).maximum


def whole(table: Table) -> None:
    """Print a table at its natural width: a figure cut short is worse than a line that a terminal wraps."""
    table.width = natural_width(table)
    out.print(table, crop=False)

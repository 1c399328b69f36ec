"""The terminal: where output goes, progress, and tables; silent about progress when piped."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ANY_WIDTH = 10_000  # columns, more than any table has
# Labels, folders and words are anyone's text: none of it is markup.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


class Progress:
    """Stages, ticked with their times as they end."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage while it lasts."""
        began = time.perf_counter()
        if err.is_terminal:
            with err.status(f"{name} …"):
                yield
        else:
            yield
        took = time.perf_counter() - began
        self.seconds += took
        if err.is_terminal:
            err.print(Text.assemble(("✓", "green"), f" {name:<8} {took:6.1f} s"))


def whole(table: Table) -> None:
    """Print a table at its natural width: a figure cut short is worse than a line that a terminal wraps."""
    table.width = Measurement.get(out, out.options.update(max_width=_ANY_WIDTH), table).maximum
    out.print(table, crop=False)

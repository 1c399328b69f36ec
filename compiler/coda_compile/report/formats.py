"""Number formats: the same units and digits everywhere on the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from coda_compile.statistics import Interval


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: headings; all but the first ``names`` columns hold numbers.
        names: how many columns hold words.
        hashes: whether the second column holds hashes.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    names: int = 1
    hashes: bool = False


def milliseconds(seconds: float) -> str:
    """``112 ms``, with three digits where they say something."""
    value = seconds * 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def megabytes(count: int) -> str:
    """Of 10^6 bytes; ``unknown`` for 0."""
    return f"{count / 1e6:,.1f} MB" if count else "unknown"


def size(count: int) -> str:
    """Of a file, in the largest unit that it fills."""
    unit, power = next(((u, p) for u, p in (("MB", 1e6), ("kB", 1e3)) if count >= p), ("bytes", 1))
    return f"{count / power:,.1f} {unit}" if power > 1 else f"{count} bytes"


def times(value: float) -> str:
    """``2.67×``."""
    return f"{value:.2f}×"


def interval(value: Interval) -> str:
    """``2.58 to 2.71``."""
    return f"{value.low:.2f} to {value.high:.2f}"


def percent(share: float) -> str:
    """Whole per cents, one digit more below ten."""
    return f"{share:{'.1%' if 0 < share < 0.1 else '.0%'}}".replace("%", "\u00a0%")


def tiny(value: float) -> str:
    """A difference of arithmetic: ``6.1e-06``, or ``0``."""
    return f"{value:.1e}" if value else "0"


def input_shape(batch: int, tokens: int) -> str:
    """``1 × 512 tokens``."""
    return f"{batch} × {tokens} tokens"

"""What a routed model keeps of the dense one that it was made from, as it was measured when it was made."""

from dataclasses import dataclass
from math import isfinite

_MOST_FIGURES, _LONGEST_NAME = 16, 80
_NO_SHARES = ("rank correlation", "R²", "cosine", "micro F1")  # how names of other figures begin


@dataclass(frozen=True)
class Figure:
    """One figure of texts that no fit has seen, with its 95 % interval.

    Attributes:
        name: ``same label``, ``accuracy``.
        value, low, high: of the routed model; a share, or a number such as a cosine.
        dense: the same of the dense model; ``None`` of agreement with it.

    Raises:
        ValueError: a number that is not finite, or a name that is no short text.
    """

    name: str
    value: float
    low: float
    high: float
    dense: float | None = None

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not 0 < len(self.name) <= _LONGEST_NAME:
            raise ValueError("a figure has a name that is no short text")
        numbers = [self.value, self.low, self.high, *([] if self.dense is None else [self.dense])]
        if not all(map(isfinite, numbers)):
            raise ValueError(f"the figure {self.name} is not finite")

    def __str__(self) -> str:
        """``accuracy 96.9% [95.9%, 97.9%] (dense 97.4%)``."""
        dense = "" if self.dense is None else f" (dense {number(self.name, self.dense)})"
        return f"{self.name} {with_interval(self.name, self.value, self.low, self.high)}{dense}"


@dataclass(frozen=True)
class Fidelity:
    """What a routed model is worth, measured in float32 before it was compiled.

    Attributes:
        figures: of the held-out texts, the most telling first.
        texts: held out.
        tokens: of the median one.
        fitted_on: how many other texts.

    Raises:
        ValueError: no figures or too many, or counts below 1.
    """

    figures: tuple[Figure, ...]
    texts: int
    tokens: int
    fitted_on: int

    def __post_init__(self) -> None:
        if not 0 < len(self.figures) <= _MOST_FIGURES:
            raise ValueError(f"there are {len(self.figures)} figures, not 1 to {_MOST_FIGURES}")
        if min(self.texts, self.tokens, self.fitted_on) < 1:
            raise ValueError("texts are counted from 1")

    def __str__(self) -> str:
        """One line."""
        return f"{'; '.join(map(str, self.figures))}; {self.on}"

    @property
    def on(self) -> str:
        """What it was measured on."""
        return f"{self.texts:,} held-out texts of {self.tokens} tokens at the median"


def with_interval(name: str, value: float, low: float, high: float) -> str:
    """The value of a figure and the ends of its interval: ``96.9% [95.9%, 97.9%]``."""
    return f"{number(name, value)} [{number(name, low)}, {number(name, high)}]"


def number(name: str, value: float) -> str:
    """The value of a figure: a share in per cent, anything else with three digits."""
    return f"{value:.3f}" if name.startswith(_NO_SHARES) else f"{value:.1%}"

"""r for each layer within a budget: of multiply-adds, or of agreement with the dense model."""

from dataclasses import dataclass

from coda_compile.errors import OptionError
from coda_compile.tune.fits import Fits
from coda_compile.tune.held_out import HeldOut
from coda_compile.tune.route_options import Stage, spelt
from coda_models.fitting.sensitivity import Choice, Sensitivity
from coda_models.model import CodaModel

_SHARES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)  # of multiply-adds, that are searched


@dataclass(frozen=True)
class Chosen:
    """r for each layer, and what is expected of it.

    Attributes:
        choice: r, and its share of the multiply-adds for the texts fitted to.
        figure: of agreement, by name, as among those of the held-out texts.
        expected: the figure, from 0 to 1: what is left where each layer loses what it loses alone; with texts kept
            aside, what was measured on them.
        kept_aside: how many texts; 0 for a budget of multiply-adds.
        tried: how many models were fitted to choose among.
    """

    choice: Choice
    figure: str
    expected: float
    kept_aside: int
    tried: int


def within_share(fits: Fits, share: float, figure: str) -> Chosen:
    """The least harmful r that take a share of the dense model's multiply-adds.

    Raises:
        ConfigError: none do.
    """
    choice = fits.sensitivity().choose(share)
    return Chosen(choice, figure, choice.agreement, kept_aside=0, tried=0)


def within_points(fits: Fits, aside: HeldOut, points: float, stage: Stage) -> tuple[Chosen, CodaModel]:
    """The cheapest r that keep agreement with the dense model within some points of a hundred, by bisection.

    Args:
        aside: texts that are neither fitted to nor held out to measure at the end.
        stage: called with each stage's name.

    Returns:
        r, and the model that was fitted at them.

    Raises:
        CodaError: none keep within them; the sentence says what was the best.
    """
    with stage("layers"):
        choices = _choices(fits.sensitivity())
    tried: list[tuple[float, Choice]] = []
    best: tuple[float, Choice, CodaModel] | None = None
    low, high = 0, len(choices)
    while low < high:
        middle = (low + high) // 2
        choice = choices[middle]
        with stage(f"try r={spelt(choice.reductions)}"):
            made = fits.routed(choice.reductions)
            kept = aside.agreement(made)[aside.figure].middle
        tried.append((kept, choice))
        if lost(kept) <= points:
            best, high = (kept, choice, made), middle
        else:
            low = middle + 1
    if best is None:
        kept, choice = max(tried, key=lambda one: one[0])
        raise OptionError(
            "no r of {tried} tried keeps within {points:g} points: the best, {r} by layer, loses {lost:.1f} at "
            "{share:.2f} of the multiply-adds ({figure} on {aside} texts kept aside): allow more by {accuracy_budget}, "
            "or give more texts",
            tried=len(tried),
            points=points,
            r=spelt(choice.reductions),
            lost=lost(kept),
            share=choice.share,
            figure=aside.figure,
            aside=len(aside),
        )
    kept, choice, made = best
    return Chosen(choice, aside.figure, kept, kept_aside=len(aside), tried=len(tried)), made


def lost(kept: float) -> float:
    """Points of a hundred, rounded to what a share of texts can tell."""
    return round(100 * (1 - kept), 6)


def _choices(sensed: Sensitivity) -> list[Choice]:
    """Different r, the cheapest first."""
    shares = [share for share in _SHARES if share >= sensed.least] or [_SHARES[-1]]
    by_reduction = {choice.reductions: choice for choice in map(sensed.choose, shares)}
    return sorted(by_reduction.values(), key=lambda choice: choice.share)

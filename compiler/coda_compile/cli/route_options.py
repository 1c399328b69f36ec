"""Options of every command that routes a dense model: how much, and by what."""

from collections.abc import Callable, Sequence
from functools import reduce, wraps
from typing import Any

import click

_NAMES = ("budget", "accuracy_budget", "attention", "stand_in", "key_value_rank", "fit_texts", "steps")
_OPTIONS = (
    click.option(
        "--budget",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Instead of -r: share of the dense model's multiply-adds, e.g. 0.25; r is measured and chosen for each "
        "layer.",
    ),
    click.option(
        "--accuracy-budget",
        type=click.FloatRange(0, 100),
        help="Instead of -r: points of agreement with the dense model that may be lost, e.g. 1.0; the cheapest r is "
        "searched.",
    ),
    click.option(
        "--attention",
        type=click.Choice(("k-to-all", "k-to-k")),
        default="k-to-all",
        show_default=True,
        help="What routed tokens attend to: all tokens, or each other.",
    ),
    click.option(
        "--rank",
        "stand_in",
        type=click.IntRange(1, 65536),
        default=64,
        show_default=True,
        help="Rank of the stand-ins, for tokens that skip a layer.",
    ),
    click.option(
        "--key-value-rank",
        type=click.IntRange(0, 65536),
        help="Rank of the keys and values of these tokens, with k-to-all; 0 is exact.  [default: 64]",
    ),
    click.option(
        "--fit-texts",
        type=click.IntRange(1),
        default=400,
        show_default=True,
        help="Most texts to fit routers and stand-ins on; the readout takes up to 2,000.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Steps of distillation from the dense model behind the fit, of 16 texts each; some hundred are minutes "
        "more.",
    ),
)


def route_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--budget``, ``--accuracy-budget``, and the options of the fit behind them, in this order.

    It is called with what they say in its argument ``routing``, by the names that ``RouteOptions`` has for it.
    """

    @wraps(command)
    def gathered(**given: Any) -> Any:
        routing = {name: given.pop(name) for name in _NAMES}
        routing["attention"] = routing["attention"].replace("-", "_")
        return command(routing=routing, **given)

    return reduce(lambda made, option: option(made), reversed(_OPTIONS), gathered)


def by_layer(reductions: Sequence[str]) -> list[str | list[str]] | None:
    """What each ``-r`` says, one or one for each layer; ``None`` without any."""
    return [r.split(",") if "," in r else r for r in reductions] or None

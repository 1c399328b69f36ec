"""Options of every command that reads a model to make something of it."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

PROBLEM_TYPE = click.Choice(("single_label_classification", "multi_label_classification", "regression"))
SEED = click.IntRange(0, 2**32 - 1)  # what numpy and torch both take

_OPTIONS = (
    click.option(
        "--backbone", metavar="PATH", help="Folder or hub name of the backbone, for a delta checkpoint or an adapter."
    ),
    click.option("--tokenizer", metavar="PATH", help="Tokenizer folder.  [default: the model's own]"),
    click.option(
        "--problem-type",
        type=PROBLEM_TYPE,
        help="What the logits mean, if the model does not say so.",
    ),
    click.option("--labels", help="Class names in the order of the logits, e.g. no,yes.  [default: the model's]"),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--backbone``, ``--tokenizer``, ``--problem-type`` and ``--labels``, in this order."""
    return reduce(lambda made, option: option(made), reversed(_OPTIONS), command)


def label_list(labels: str | None) -> list[str] | None:
    """What ``--labels`` names."""
    return None if labels is None else [name.strip() for name in labels.split(",")]

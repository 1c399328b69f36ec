"""Options of the commands that run bundles."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def variant_options(command: _Command) -> _Command:
    """Add ``--target`` and ``--precision``; without them the first variant that this machine can run is taken."""
    command = click.option(
        "--precision", "-p", metavar="NAME", help="Use the variant of this precision.  [default: any]"
    )(command)
    return click.option(
        "--target", "-t", metavar="NAME", help="Use the variant of this target.  [default: any that runs here]"
    )(command)


def device_option(command: _Command) -> _Command:
    """Add ``--device``, of commands that run a bundle on one of several GPUs."""
    return click.option(
        "--device",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        metavar="N",
        help="Use this one of several GPUs.",
    )(command)

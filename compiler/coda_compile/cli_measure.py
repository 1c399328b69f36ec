"""Commands that measure: bench, check, report, explain. Parse and call, nothing else."""

import click


@click.group()
def measure() -> None:
    """Holds the commands until ``coda_compile.cli`` takes them over."""

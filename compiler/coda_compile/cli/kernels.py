"""Commands for the native kernels of the CoDA operators. Parse and call, nothing else."""

from pathlib import Path

import click


@click.group(short_help="Native CPU kernels of the CoDA operators.")
def kernels() -> None:
    """Native CPU kernels of the CoDA operators. Bundles run without them; with them the same file runs faster.

    \b
    coda-compile kernels status
    coda-compile kernels build --include onnxruntime-linux-x64-1.22.0/include

    CODA_KERNELS=portable in the environment leaves them unused.
    """


@kernels.command(short_help="Build the kernels on this machine.")
@click.option("--include", type=click.Path(path_type=Path), help="Folder of onnxruntime's C++ headers.")
def build(include: Path | None) -> None:
    """Compile the kernels with this machine's C++ compiler and CMake, into the installed package."""
    from coda_compile.cli import summaries
    from coda_compile.terminal import Progress
    from coda_ops import native

    with Progress().stage("build"):
        native.build_kernels(include)
    summaries.kernels()


@kernels.command(short_help="Show whether kernels are installed and loaded.")
def status() -> None:
    """Show where the kernels are and whether this onnxruntime loads them, or what is missing to build them."""
    from coda_compile.cli import summaries

    summaries.kernels()

"""Commands for the native kernels of the CoDA operators. Parse and call, nothing else."""

from pathlib import Path

import click

from coda_ops import native


@click.group(short_help="Native kernels of the CoDA operators.")
def kernels() -> None:
    """Native kernels of the CoDA operators. Bundles run without them; with them the same file runs faster.

    \b
    coda-compile kernels status
    coda-compile kernels build --target cuda
    coda-compile kernels build --include onnxruntime-linux-x64-1.22.0/include

    CODA_KERNELS=portable in the environment leaves them unused.
    """


@kernels.command(short_help="Build the kernels on this machine.")
@click.option(
    "-t",
    "--target",
    type=click.Choice(list(native.LIBRARIES)),
    default=next(iter(native.LIBRARIES)),
    show_default=True,
    help="Processors to build for.",
)
@click.option("--include", type=click.Path(path_type=Path), help="Folder of onnxruntime's C++ headers.")
def build(target: str, include: Path | None) -> None:
    """Compile the kernels into the installed package: for CPUs with this machine's C++ compiler and CMake, for NVIDIA
    GPUs with nvcc, which needs no GPU."""
    from coda_compile.cli import summaries
    from coda_compile.terminal import Progress

    with Progress().stage("build"):
        native.build_kernels(include, name=target)
    summaries.kernels()


@kernels.command(short_help="Show whether kernels are installed and loaded.")
def status() -> None:
    """Show where the kernels are and whether this onnxruntime loads them, or what is missing to build them."""
    from coda_compile.cli import summaries

    summaries.kernels()

"""The command that trains a dense adapter from labels, and routes it. Parse and call, nothing else."""

from pathlib import Path
from typing import Any

import click

from coda_compile.cli.model_options import PROBLEM_TYPE, SEED
from coda_compile.cli.route_options import by_layer, route_options


@click.command(short_help="Train a dense adapter from labels, and route it.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--backbone", metavar="PATH", required=True, help="Folder or hub name of a pretrained encoder.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The checkpoint.  [default: DATA's name with .pt]"
)
@click.option("--label-column", metavar="NAME", default="label", show_default=True, help="Column of DATA with labels.")
@click.option(
    "--problem-type",
    type=PROBLEM_TYPE,
    help="What labels are.  [default: what they look like]",
)
@click.option(
    "--max-length",
    type=click.IntRange(3),
    metavar="TOKENS",
    help="Cut texts to this.  [default: the backbone's own, 512 at most]",
)
@click.option(
    "--truncation-side",
    type=click.Choice(("left", "right")),
    help="Which end of a longer text is cut off.  [default: the tokenizer's own, mostly right]",
)
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Passes over the texts.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Peak of AdamW's schedule.",
)
@click.option(
    "--bottleneck", type=click.IntRange(1, 65536), default=64, show_default=True, help="Width of the adapters."
)
@click.option(
    "--delta", is_flag=True, help="Leave the backbone out of the checkpoint; --backbone names it again later."
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Draws held-out texts, first weights and order.",
)
@click.option(
    "--reduction",
    "-r",
    "reductions",
    multiple=True,
    help="Route the adapter at this r, as `route` does: 4, 7/2, or one per layer; repeat for several models.",
)
@route_options
def train(
    data: Path,
    backbone: str,
    output: Path | None,
    label_column: str,
    problem_type: str | None,
    max_length: int | None,
    truncation_side: str | None,
    epochs: int,
    learning_rate: float,
    bottleneck: int,
    delta: bool,
    seed: int,
    reductions: tuple[str, ...],
    routing: dict[str, Any],
) -> None:
    """Train a dense adapter on the labelled texts in DATA: a .csv file with the columns text (and text_pair) and label,
    or .jsonl.

    The backbone stays frozen. Labels are names of classes, numbers to predict (with fractions, as 0.5), or, as a JSON
    list of names, several classes of a text. A fifth of the texts, 400 at most, is held out: the figures at the end are
    measured on these, beside a linear model on words.

    Ctrl-C leaves the last whole epoch in a folder beside the output, and the same command goes on from there.

    \b
    coda-compile train texts.csv --backbone ./encoder -o trained.pt
    coda-compile train reviews.csv --backbone ./encoder --truncation-side left -r 4 -r 8 -o trained.pt
    coda-compile train scores.jsonl --backbone ./encoder --label-column score -o trained.pt
    coda-compile trained.pt -o trained-cpu               then compile it
    """
    from coda_compile.terminal import Progress

    progress = Progress()
    with progress.stage("start"):
        import torch  # noqa: F401  first, because transformers prints advice of its own where torch is absent

        from coda_compile.cli import train_table
        from coda_compile.tune.route_options import RouteOptions
        from coda_compile.tune.train import train as train_all
        from coda_compile.tune.train_options import TrainOptions
    options = TrainOptions(
        label_column=label_column,
        problem_type=problem_type,
        max_length=max_length,
        truncation_side=truncation_side,
        epochs=epochs,
        learning_rate=learning_rate,
        bottleneck=bottleneck,
        delta=delta,
        seed=seed,
    )
    trained = train_all(
        data,
        backbone,
        options,
        routing=RouteOptions(**routing),
        reductions=by_layer(reductions),
        output=output or Path(f"{data.stem}.pt"),
        stage=progress.stage,
        progress=progress.step,
    )
    train_table.show(trained, data, backbone if delta else None)

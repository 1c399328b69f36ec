"""The command that routes a dense model. Parse and call, nothing else."""

from pathlib import Path
from typing import Any

import click

from coda_compile.cli.model_options import SEED, label_list, model_options
from coda_compile.cli.route_options import by_layer, route_options


@click.command(short_help="Route a dense model, from unlabelled texts.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    required=True,
    help="Texts like those that MODEL will see: one per line, or .csv or .jsonl with text (and text_pair).",
)
@click.option(
    "--reduction",
    "-r",
    "reductions",
    multiple=True,
    help="Reduction factor r: 4, 7/2, or one per layer, e.g. 2,2,4,4; repeat for several models.  [default: 4]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="The routed checkpoint; {r} in its name stands for r.  [default: MODEL-r{r}.pt; within a budget "
    "MODEL-routed.pt]",
)
@route_options
@click.option(
    "--held-out",
    type=click.Path(path_type=Path),
    help="Texts to measure with, in the form of --texts; best some that MODEL was not trained on.  "
    "[default: a fifth of --texts]",
)
@click.option(
    "--label-column",
    metavar="NAME",
    help="Column with labels, to measure accuracy by; nothing is fitted to them.",
)
@model_options
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Draws the held-out texts, and the order of steps.",
)
def route(
    model: Path,
    texts: Path,
    reductions: tuple[str, ...],
    output: Path | None,
    routing: dict[str, Any],
    held_out: Path | None,
    label_column: str | None,
    backbone: str | None,
    tokenizer: str | None,
    problem_type: str | None,
    labels: str | None,
    seed: int,
) -> None:
    """Make a routed checkpoint of MODEL, a dense one, in minutes and without labels.

    Each layer routes n / r of a sequence's n tokens; r is given, or chosen for each layer within a budget. Routers,
    stand-ins for the tokens that skip a layer, and a readout are fitted in closed form to what MODEL itself makes of
    the texts. A fifth of the texts, 400 at most, is held out, or --held-out names others: the figures at the end say
    how far the routed model agrees with MODEL on these. With --steps it is trained on MODEL's answers from there; the
    same command goes on where it was interrupted.

    MODEL is a classifier, a tagger or an embedding model: a Hugging Face or sentence-transformers folder, a PEFT folder
    of LoRA or its kin, or a CoDA checkpoint at r = 1.

    \b
    coda-compile route ./my-classifier --texts texts.csv -o routed.pt
    coda-compile route lora-folder --backbone ./base --texts texts.txt -r 8 -o routed.pt
    coda-compile route ./my-classifier --texts test.csv --label-column label -r 2 -r 4 -r 8 -o routed-{r}.pt
    coda-compile route ./my-classifier --texts texts.csv -r 8 --steps 300 -o routed.pt
    coda-compile route ./my-classifier --texts texts.csv --budget 0.25
    coda-compile route ./my-classifier --texts texts.csv --accuracy-budget 1.0 -o routed.pt
    coda-compile routed.pt -o routed-cpu                 then compile it
    """
    from coda_compile.terminal import Progress

    progress = Progress()
    with progress.stage("start"):
        import torch  # noqa: F401  first, because transformers prints advice of its own where torch is absent

        from coda_compile.cli import route_table
        from coda_compile.sources import read_tokenizer
        from coda_compile.tune.route import route as route_all
        from coda_compile.tune.route_options import RouteOptions
    options = RouteOptions(
        **routing,
        held_out=held_out,
        label_column=label_column,
        backbone=backbone,
        tokenizer=None if tokenizer is None else read_tokenizer(tokenizer),
        problem_type=problem_type,
        labels=label_list(labels),
        seed=seed,
    )
    end = "routed" if options.chooses else "r{r}"
    front = route_all(
        model,
        texts,
        options,
        reductions=by_layer(reductions),
        output=output or Path(f"{model.resolve().name.removesuffix('.pt')}-{end}.pt"),
        stage=progress.stage,
        progress=progress.step,
    )
    route_table.show(front)

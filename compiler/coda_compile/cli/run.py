"""The command that predicts. Parse and call, nothing else."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coda_compile.cli.variant import device_option, variant_options
from coda_compile.errors import CodaError

if TYPE_CHECKING:
    from coda_targets.modalities.text import Text


@click.command(short_help="Predict with a bundle; one JSON line per text.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option(
    "--text-pair",
    "others",
    multiple=True,
    metavar="TEXT",
    help="Second text of a pair with TEXTS; repeat for several pairs.",
)
@click.option(
    "--file",
    "-f",
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="One text per line, or .csv or .jsonl with text and text_pair; - is stdin.",
)
@variant_options
@click.option("--task", metavar="NAME", help="Task to run, in a bundle with several.  [default: the first]")
@click.option("--raw", is_flag=True, help="Print the logits of all labels instead of scores.")
@click.option("--show-routing", is_flag=True, help="Print the words that each layer routed.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Batch size.")
@click.option(
    "--threads", default=0, show_default=True, type=click.IntRange(0), help="Threads; 0 is onnxruntime's choice."
)
@device_option
@click.option("--verbose", "-v", is_flag=True, help="Print on stderr which variant of BUNDLE runs.")
def run(
    bundle: Path,
    texts: tuple[str, ...],
    others: tuple[str, ...],
    source: Path | None,
    target: str | None,
    precision: str | None,
    task: str | None,
    raw: bool,
    show_routing: bool,
    batch: int,
    threads: int,
    device: int,
    verbose: bool,
) -> None:
    """Predict with BUNDLE for each of TEXTS, or for each line of a file or of stdin. One JSON line per prediction.

    Scores are those of transformers' pipelines, and of sentence-transformers for cross-encoders: the best label's, or
    for multi-label models all labels', best first.

    Models that take text pairs combine TEXTS with --text-pair: one with each, each with one, or as many of both, in
    order. A .csv or .jsonl file gives pairs by its columns text and text_pair.

    \b
    coda-compile run reviews-cpu "A slow start, then a triumph."
    coda-compile run reviews-cpu --file reviews.txt > results.jsonl
    coda-compile run reranker-cpu "how do whales sleep" --text-pair "One half at a time." --text-pair "Bees dance."
    coda-compile run reranker-cpu --file pairs.csv --raw
    """
    from coda_compile.inspect.predict import predict
    from coda_compile.text_files import named
    from coda_targets import Bundle

    opened = Bundle(bundle, target=target, precision=precision, threads=threads, device=device)
    if verbose:
        click.echo(f"coda-compile: running variant {opened.variant.name}", err=True)
    given, none = _texts(texts, others, source), True
    for text, record, routed in predict(opened, given, batch=batch, routing=show_routing, task=task, raw=raw):
        none = False
        click.echo(json.dumps({**named(text), **record}, ensure_ascii=False))
        if routed is not None:
            from coda_compile.cli import summaries

            summaries.routing(routed)
    if none:
        where = "stdin" if source in (None, Path("-")) else source
        raise CodaError(f"{where} holds no text to run on: give a text a line")


def _texts(texts: tuple[str, ...], others: tuple[str, ...], source: Path | None) -> "Iterator[Text]":
    from coda_compile.text_files import lines, pairs, stream_texts, utf8

    if others and not texts:
        raise click.UsageError("--text-pair stands beside TEXTS: give some, or a .csv or .jsonl with --file")
    if texts and source is not None:
        raise click.UsageError("give TEXTS or --file, one of them")
    if texts:
        yield from pairs([utf8(text) for text in texts], [utf8(text) for text in others])
    elif source is not None and source != Path("-"):
        yield from stream_texts(source)
    elif source is None and (sys.stdin is None or sys.stdin.isatty()):  # None where the shell closed it
        raise CodaError("no text to run on: give some, or --file FILE, or pipe lines in")
    else:
        yield from lines(sys.stdin)

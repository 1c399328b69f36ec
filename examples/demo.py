"""Compile the trained demo model, run it on real text, and time it against the dense adapter.

python examples/demo.py --backbone FOLDER_OR_HUB_NAME [--texts ../shared/data/movie_reviews.zip]
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

import click
import train_reviews
from rich.console import Console
from rich.progress import Progress

from coda_compile import Bundle, CompileOptions, compile, terminal
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.cli import summaries
from coda_compile.inspect.cost import dense_multiply_adds, multiply_adds
from coda_compile.inspect.predict import predict
from coda_compile.statistics import ratio_interval
from coda_targets.modalities.text import TextCodec

HERE = Path(__file__).parent
out = Console(highlight=False)


def read_texts(path: Path, count: int) -> list[tuple[str, str]]:
    """(text, label) pairs: reviews that training never saw, or one text a line without labels."""
    if path.suffix == ".txt":
        return [(line, "") for line in path.read_text("utf-8").splitlines() if line][:count]
    _, texts, _, labels = train_reviews.split(*train_reviews.read_texts(path))
    return list(zip(texts, labels, strict=True))[:count]


def show_predictions(bundle: Bundle, texts: list[tuple[str, str]]) -> None:
    """Label, probability and the end of each text."""
    out.print("\n[bold]predictions[/]")
    for (text, record, _), (_, label) in zip(predict(bundle, [t for t, _ in texts]), texts, strict=True):
        tail = " ".join(text.split())[-70:]
        truth = f", labelled {label}" if label else ""
        out.print(f"  {record['label']} {record['score']:.0%}{truth:<14}  … {tail}", markup=False, soft_wrap=True)


def show_routing(bundle: Bundle) -> None:
    """The words that each layer sent through the heavy path, for one short text."""
    text = "The first hour drags, the jokes are stale, but the ending is a triumph and I left the cinema smiling."
    out.print("\n[bold]routing[/]: the words that took the heavy path, layer by layer")
    for _, record, words in predict(bundle, [text], routing=True):
        if words is not None:
            summaries.routing(words)
        out.print(f"  → {record['label']} {record['score']:.0%}")


def show_parity(bundle: Bundle) -> None:
    """How closely the compiled model equals torch, on shapes the export never saw."""
    report: dict[str, Any] = json.loads((bundle.folder / "report.json").read_text("utf-8"))
    cases = report["variants"][bundle.variant.name]["parity"]["cases"]
    out.print(f"\n[bold]parity[/] with torch on {len(cases)} shapes that the export never saw")
    out.print(
        f"  logits within {max(case['outputs']['logits'] for case in cases):.1e}, "
        f"scores within {max(case['scores'] for case in cases):.1e}, "
        f"{sum(len(case['ties']) for case in cases)} selections differ by a tie",
        soft_wrap=True,
    )


def show_latency(coda: Bundle, dense: Bundle, text: str, rounds: int) -> None:
    """The compiled model against the dense adapter compiled the same way."""
    inputs = TextCodec(coda).encode([text]).inputs
    _, tokens = coda.manifest.signature.shape(inputs)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("timing, in turns", total=None)
        timings = in_turns(
            [Contender.of_bundle("CoDA", coda.folder), Contender.of_bundle("dense adapter", dense.folder)],
            [coda.prepare(inputs)],
            rounds=rounds,
            on_round=lambda: progress.advance(task),
        )
    seconds = {name: timing.rounds() for name, timing in timings.items()}
    faster = ratio_interval(seconds["dense adapter"], seconds["CoDA"])
    bound = dense_multiply_adds(coda.manifest, tokens) / multiply_adds(coda.manifest, tokens)
    out.print(f"\n[bold]latency[/], 1 x {tokens} tokens, median of {rounds} rounds in turns, a process each")
    for name, values in seconds.items():
        out.print(f"  {name:<14}{median(values) * 1e3:8.1f} ms")
    out.print(
        f"  {faster.middle:.2f}x faster (95 % interval {faster.low:.2f} … {faster.high:.2f}; "
        f"multiply-adds bound {bound:.2f}x)"
    )


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), default=HERE / "reviews.pt", show_default="reviews.pt")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option(
    "--texts", type=click.Path(path_type=Path), default=HERE / "reviews.txt", help="Zip of reviews, or lines."
)
@click.option("--out", "folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(4))
@train_reviews.in_a_sentence()
def main(model: Path, backbone: str, texts: Path, folder: Path, rounds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bundles = []
    for name, reduction in (("coda", None), ("dense", 1)):
        progress = terminal.Progress()
        bundle = compile(
            model, CompileOptions(backbone=backbone, reduction=reduction), output=folder / name, stage=progress.stage
        )
        summaries.compiled(bundle, folder / name, progress.seconds)
        bundles.append(bundle)
    coda, dense = bundles
    pairs = read_texts(texts, 8)
    show_predictions(coda, pairs)
    show_routing(coda)
    show_parity(coda)
    show_latency(coda, dense, max((text for text, _ in pairs), key=len), rounds)


if __name__ == "__main__":
    main()

"""Route the dense example model from unlabelled texts, compile both, and compare them: accuracy, answers, latency.

python examples/demo.py --backbone FOLDER_OR_HUB_NAME [--texts ../shared/data/movie_reviews.zip]

Without labelled texts, the model that was trained to route is compiled instead, and its accuracy is not measured.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import train_reviews
from rich.console import Console
from rich.progress import Progress

from coda_compile import Bundle, CompileOptions, RouteOptions, compile, route, terminal
from coda_compile.bench.machine import this_machine
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.cli import route_table, summaries
from coda_compile.inspect.cost import dense_multiply_adds, multiply_adds
from coda_compile.inspect.predict import predict
from coda_compile.statistics import ratio_interval
from coda_targets.modalities.text import TextCodec

HERE = Path(__file__).parent
FIT, JUDGED, SHOWN = 200, 200, 8  # texts
out = Console(highlight=False)


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


def kernels_by() -> str:
    """The widest instruction set that decides how fast products are here."""
    names = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if flag in this_machine().instruction_sets), "no AVX2")


def show_latency(coda: Bundle, dense: Bundle, text: str, rounds: int) -> None:
    """The compiled model against the dense one compiled the same way."""
    inputs = TextCodec(coda).encode([text]).inputs
    _, tokens = coda.manifest.signature.shape(inputs)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("timing, in turns", total=None)
        timings = in_turns(
            [Contender.of_bundle("CoDA", coda.folder), Contender.of_bundle("dense", dense.folder)],
            [coda.prepare(inputs)],
            rounds=rounds,
            on_round=lambda: progress.advance(task),
        )
    seconds = {name: timing.rounds() for name, timing in timings.items()}
    faster = ratio_interval(seconds["dense"], seconds["CoDA"])
    bound = dense_multiply_adds(coda.manifest, tokens) / multiply_adds(coda.manifest, tokens)
    machine = this_machine()
    out.print(f"\n[bold]latency[/], 1 x {tokens} tokens, median of {rounds} rounds in turns, a process each")
    out.print(f"  {machine.cpu}, {kernels_by()}, {machine.kernels} kernels", markup=False, soft_wrap=True)
    for name, values in seconds.items():
        out.print(f"  {name:<6}{median(values) * 1e3:8.1f} ms")
    out.print(
        f"  {faster.middle:.2f}x faster (95 % interval {faster.low:.2f} … {faster.high:.2f}; "
        f"multiply-adds bound {bound:.2f}x)"
    )


def routed(model: Path, backbone: str, data: Path, judged: Path, folder: Path) -> Path:
    """A routed checkpoint of a dense one, measured on texts that neither training nor fit has seen."""
    out.print(f"[bold]route[/] {model.name}, from {FIT} texts, without their labels")
    path, progress = folder / "routed.pt", terminal.Progress()
    options = RouteOptions(backbone=backbone, held_out=judged, label_column="label")
    front = route(model, data, options, reductions=[4], output=path, stage=progress.stage, progress=progress.step)
    route_table.show(front)
    return path


def compiled(model: Path, options: CompileOptions, folder: Path) -> Bundle:
    """A bundle in a folder, and what came of it."""
    progress = terminal.Progress()
    bundle = compile(model, options, output=folder, stage=progress.stage)
    summaries.compiled(bundle, folder, progress.seconds)
    return bundle


@click.command(help=__doc__)
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    default=HERE / "reviews.txt",
    show_default="reviews.txt",
    help="Zip or CSV of labelled texts, or lines.",
)
@click.option("--out", "folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(4))
@train_reviews.in_a_sentence()
def main(backbone: str, texts: Path, folder: Path, rounds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = CompileOptions(backbone=backbone)
    if texts.suffix == ".txt":
        pairs = [(line, "") for line in texts.read_text("utf-8").splitlines() if line]
        coda = compiled(HERE / "reviews.pt", options, folder / "coda")
        dense = compiled(HERE / "reviews.pt", replace(options, reduction=1), folder / "dense")
    else:
        seen, unseen, seen_labels, labels = train_reviews.split(*train_reviews.read_texts(texts))
        pairs = list(zip(unseen, labels, strict=True))
        judged = train_reviews.write_texts(folder / "judged.csv", pairs[:JUDGED])
        data = train_reviews.write_texts(folder / "texts.csv", zip(seen[:FIT], seen_labels[:FIT], strict=True))
        checkpoint = routed(HERE / "reviews-dense.pt", backbone, data, judged, folder)
        coda = compiled(checkpoint, options, folder / "coda")
        dense = compiled(HERE / "reviews-dense.pt", options, folder / "dense")
    show_predictions(coda, pairs[:SHOWN])
    show_routing(coda)
    show_parity(coda)
    show_latency(coda, dense, max((text for text, _ in pairs[:SHOWN]), key=len), rounds)


if __name__ == "__main__":
    main()

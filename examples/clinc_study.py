"""What adapters, routing and compiling do to accuracy, to knowing what one does not know, and to latency, on CLINC150.

    python examples/clinc_study.py --data ../shared/data/clinc150.json --backbone FOLDER_OR_HUB_NAME --out study

The question of Cho et al. 2023, carried to deployment: every method of ``clinc_methods`` is trained with every seed and
judged in torch, compiled in float32 and compiled in int8; the models of the first seed are timed. What --out holds is
not done again: a study may be interrupted, and calls with different --methods or --seeds share the work. All that was
found lies in its results.json, from which alone tables and pictures can be made again. Tables are printed as Markdown,
and two pictures are drawn into --out where Chromium is installed.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import click
import clinc_methods
import numpy as np
import plotly.graph_objects as go
import torch
from clinc_methods import DENSE, METHODS, Task
from picture import browser, take
from rich.console import Console
from train_reviews import in_a_sentence

from coda_compile import Bundle, CompileOptions, compile
from coda_compile.bench.machine import this_machine, thread_count
from coda_compile.bench.turns import Contender, in_turns
from coda_compile.inspect.evaluate import separate
from coda_compile.prepare import fit_ood
from coda_compile.sources import read_source
from coda_compile.sources.torch_model import TorchModel
from coda_models.backbone import load_tokenizer
from coda_models.ood import FITTED, FromLogits
from coda_models.ood import METHODS as SCORES
from coda_targets.modalities.text import TextCodec

PRECISIONS = ("fp32", "int8")
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
ROUNDS = 15
SIZE = (900, 480)
Pairs = list[tuple[str, str]]
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Queries:
    """CLINC150's parts, each (text, intent), and the queries that have none of the intents."""

    train: Pairs
    validation: Pairs
    test: Pairs
    outside: list[str]


def read_queries(path: Path) -> Queries:
    """The parts of its JSON file that the study reads."""
    try:
        parts = json.loads(path.read_text("utf-8"))
        train, validation, test, outside = (
            [(str(text), str(intent)) for text, intent in parts[name]] for name in ("train", "val", "test", "oos_test")
        )
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{path} is not CLINC150's data_full.json") from None
    return Queries(train, validation, test, [text for text, _ in outside])


def task_of(queries: Queries, backbone: str) -> Task:
    """Rows of token ids for training."""
    tokenizer = load_tokenizer(backbone)
    if tokenizer is None:
        raise click.ClickException(f"{backbone} has no tokenizer")
    classes = sorted({intent for _, intent in queries.train})

    def rows(pairs: Pairs) -> clinc_methods.Rows:
        ids = tokenizer([text for text, _ in pairs], truncation=True, max_length=clinc_methods.TOKENS)["input_ids"]
        return [{"input_ids": i, "labels": classes.index(intent)} for i, (_, intent) in zip(ids, pairs, strict=True)]

    return Task(tokenizer, rows(queries.train), rows(queries.validation), classes)


def folder_of(out: Path, method: str, seed: int) -> Path:
    return out / f"{method.replace(' ', '-').replace('=', '')}-seed{seed}"


def trained(out: Path, method: str, seed: int, task: Task, backbone: str, bf16: bool) -> Path:
    """The folder of a trained model, trained now unless it is there."""
    folder = folder_of(out, method, seed)
    if not folder.is_dir():
        console.print(f"training {method}, seed {seed}")
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        parameters, accuracies = clinc_methods.teach(
            METHODS[method], task, backbone, folder_of(out, DENSE, seed) / "model", partial / "model", seed, bf16=bf16
        )
        found = {"parameters": parameters, "validation": accuracies}
        (partial / "training.json").write_text(json.dumps(found) + "\n", "utf-8")
        partial.rename(folder)
    return folder


class Results:
    """What was found, in one file that calls share."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "results.json"

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            every: dict[str, dict[str, Any]] = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else {}
        except ValueError:
            raise click.ClickException(f"{self._path} is damaged: take it away") from None
        return every

    def __getitem__(self, name: str) -> dict[str, Any] | None:
        return self._read().get(name)

    def __setitem__(self, name: str, found: dict[str, Any]) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({**self._read(), name: found}, indent=1, sort_keys=True) + "\n", "utf-8")
        partial.replace(self._path)


def judged(
    out: Path, results: Results, method: str, seed: int, queries: Queries, task: Task, backbone: str, bf16: bool
) -> dict[str, Any]:
    """Accuracy and separation of a model in torch and compiled; trained and judged now unless that was done."""
    name = f"{method}, seed {seed}"
    if (known := results[name]) is not None:
        return known
    if METHODS[method].reduction > 1:
        trained(out, DENSE, seed, task, backbone, bf16)
    folder = trained(out, method, seed, task, backbone, bf16)
    console.print(f"judging {name}")
    found = judge(_read(folder, backbone, task.classes), queries, task.classes)
    found |= json.loads((folder / "training.json").read_text("utf-8"))
    results[name] = found
    return found


def _read(folder: Path, backbone: str, classes: Sequence[str]) -> TorchModel:
    path = clinc_methods.source(folder / "model")
    source = read_source(path, backbone=clinc_methods.backbone_of(path, backbone))
    source.model.hf_config.id2label = dict(enumerate(classes))  # PEFT's folders have no names for them
    return TorchModel(source.kind, source.model, source.tokenizer or load_tokenizer(backbone))


def judge(source: TorchModel, queries: Queries, classes: list[str]) -> dict[str, Any]:
    """The model in torch, then compiled in each precision, with the detectors that were fitted on the one in torch."""
    model, tokenizer = source.model, source.tokenizer
    assert tokenizer is not None
    texts = [text for text, _ in queries.test] + queries.outside
    known = fit_ood.embed(model, tokenizer, [text for text, _ in queries.train])
    features, logits = fit_ood.embed(model, tokenizer, texts)
    intents = [intent for _, intent in queries.train]
    detectors = {score: fit_ood.detector(score, *known, intents, "the training queries") for score in SCORES}
    wanted = np.array([classes.index(intent) for _, intent in queries.test])

    def verdict(logits: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, Any]:
        answers = logits[: len(wanted)].argmax(-1)
        parts = {name: separate(values[: len(wanted)], values[len(wanted) :]) for name, values in scores.items()}
        same = float(np.mean(answers == eager_answers))
        return {
            "accuracy": float(np.mean(answers == wanted)),
            "same": same,
            "scores": {name: asdict(part) for name, part in parts.items()},
        }

    eager_answers = logits[: len(wanted)].numpy().argmax(-1)
    with torch.inference_mode():
        scores = {name: detector.score(features, logits).numpy() for name, detector in detectors.items()}
    found = {"eager": verdict(logits.numpy(), scores)}
    for precision in PRECISIONS:
        scores = {}
        for name in FITTED:
            with_detector = deepcopy(model)
            with_detector.ood = detectors[name]
            with TemporaryDirectory(prefix="coda-study-") as place:
                bundle = compile(
                    with_detector,
                    CompileOptions(precision=precision, tokenizer=tokenizer),
                    output=Path(place) / "bundle",
                )
                compiled, scores[name] = answers_of(bundle, texts)
        raw = torch.from_numpy(compiled)
        scores |= {name: FromLogits(name)(raw, raw).numpy() for name in SCORES if name not in FITTED}
        found[precision] = verdict(compiled, scores)
    return found


def answers_of(bundle: Bundle, texts: Sequence[str], batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Logits [texts, classes] and scores [texts] of a bundle."""
    codec = TextCodec(bundle)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [
        bundle.run(codec.encode([texts[i] for i in order[start : start + batch]]).inputs)
        for start in range(0, len(order), batch)
    ]
    back = np.argsort(order)
    logits, scores = (np.concatenate([part[name] for part in parts])[back] for name in ("logits", "ood_score"))
    return logits, scores


def timed(
    out: Path, results: Results, methods: Sequence[str], seed: int, queries: Queries, task: Task, backbone: str
) -> dict[str, Any]:
    """Milliseconds and bytes of one seed's models, measured now unless that was done."""
    if (known := results["latency"]) is not None:
        return known
    console.print("timing, which wants a machine that does nothing else")
    with TemporaryDirectory(prefix="coda-study-") as place:
        found = measure(out, methods, seed, queries, task, backbone, Path(place))
    results["latency"] = found
    return found


def measure(
    out: Path, methods: Sequence[str], seed: int, queries: Queries, task: Task, backbone: str, place: Path
) -> dict[str, Any]:
    """Every method on one and on 32 real queries, in turns, and the CoDA models on texts of several lengths."""
    sizes: dict[str, int] = {}
    contenders, of_coda = [], []
    for method in methods:
        folder = folder_of(out, method, seed)
        path = clinc_methods.source(folder / "model")
        arguments = {"checkpoint": str(path), "compiled": False, "backbone": clinc_methods.backbone_of(path, backbone)}
        contenders.append(Contender(f"{method}, eager", "torch_model", arguments))
        source = _read(folder, backbone, task.classes)
        for precision in PRECISIONS:
            name = f"{method}, {precision}"
            bundle = compile(
                source.model,
                CompileOptions(precision=precision, tokenizer=source.tokenizer),
                output=place / f"{len(sizes)}",
            )
            sizes[name] = sum(file.stat().st_size for file in bundle.folder.rglob("*") if file.is_file())
            contenders.append(Contender.of_bundle(name, bundle.folder))
            if method.startswith("coda"):
                of_coda.append(contenders[-1])
    codec = TextCodec(Bundle(place / "0"))
    middle = sorted((text for text, _ in queries.test), key=len)[len(queries.test) // 2]
    inputs = [codec.encode(texts).inputs for texts in ([middle], [text for text, _ in queries.test[:32]])]
    everyone = in_turns(contenders, inputs, rounds=ROUNDS)
    longer = in_turns(of_coda, [source.model.signature.random(1, n) for n in LENGTHS], rounds=ROUNDS)
    machine = this_machine()
    return {
        "machine": f"{machine.cpu}, {' '.join(machine.instruction_sets)}, {thread_count(0)} threads",
        "shapes": [list(source.model.signature.shape(feed)) for feed in inputs],
        "bytes": sizes,
        "queries": {name: [median(t.rounds(case)) * 1e3 for case in (0, 1)] for name, t in everyone.items()},
        "lengths": {name: [median(t.rounds(case)) * 1e3 for case in range(len(LENGTHS))] for name, t in longer.items()},
    }


def accuracy_table(verdicts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Accuracy of every method and what compiling changed, means over the seeds."""
    lines = [
        "| method | trained parameters | accuracy | each seed | compiled fp32 | int8 | answers as in torch, int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, seeds in verdicts.items():
        each = ", ".join(f"{v['eager']['accuracy']:.1%}" for v in seeds)
        eager, fp32, int8 = (mean(v[kind]["accuracy"] for v in seeds) for kind in ("eager", *PRECISIONS))
        same = mean(v["int8"]["same"] for v in seeds)
        count = f"{seeds[0]['parameters'] / 1e6:.2f} M"
        lines.append(f"| {method} | {count} | {eager:.2%} | {each} | {fp32:.2%} | {int8:.2%} | {same:.2%} |")
    return lines


def score_table(verdicts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """AUROC and FPR at 95 % TPR of every score in torch, means over the seeds, and the most that compiling moved."""
    lines = [
        f"| method | {' | '.join(SCORES)} | AUROC moved by fp32 | by int8 |",
        "|---" * (len(SCORES) + 3) + "|",
    ]
    for method, seeds in verdicts.items():
        cells = []
        for score in SCORES:
            auroc, fpr = (mean(v["eager"]["scores"][score][key] for v in seeds) for key in ("auroc", "fpr95"))
            cells.append(f"{auroc:.4f} / {fpr:.1%}")
        moved = (f"{max(_moved(v, kind) for v in seeds):.4f}" for kind in PRECISIONS)
        lines.append(f"| {method} | {' | '.join(cells)} | {' | '.join(moved)} |")
    return lines


def _moved(verdict: dict[str, Any], kind: str) -> float:
    """The largest change of any score's AUROC."""
    eager, compiled = verdict["eager"]["scores"], verdict[kind]["scores"]
    return max(abs(compiled[score]["auroc"] - eager[score]["auroc"]) for score in SCORES)


def latency_table(latency: dict[str, Any], methods: Sequence[str]) -> list[str]:
    """Milliseconds in torch and compiled, and bytes."""
    shapes = [f"{batch} x {tokens}" for batch, tokens in latency["shapes"]]
    head = [f"{kind}, {shape}" for shape in shapes for kind in ("torch", *PRECISIONS)]
    lines = [f"| ms | {' | '.join(head)} | MB fp32 | MB int8 |", "|---" * (len(head) + 3) + "|"]
    for method in methods:
        kinds = ("eager", *PRECISIONS)
        cells = [f"{latency['queries'][f'{method}, {kind}'][case]:.1f}" for case in (0, 1) for kind in kinds]
        sizes = [f"{latency['bytes'][f'{method}, {kind}'] / 1e6:.1f}" for kind in PRECISIONS]
        lines.append(f"| {method} | {' | '.join(cells)} | {' | '.join(sizes)} |")
    return lines


def lengths_table(latency: dict[str, Any]) -> list[str]:
    """How many times as fast as the dense adapter each CoDA model is, by length."""
    lines = [f"| tokens | {' | '.join(map(str, LENGTHS))} |", "|---" * (len(LENGTHS) + 1) + "|"]
    for name, times in latency["lengths"].items():
        dense = latency["lengths"][f"{DENSE}, {name.split(', ')[1]}"]
        if not name.startswith(DENSE):
            lines.append(f"| {name} | {' | '.join(f'{d / t:.2f}x' for d, t in zip(dense, times, strict=True))} |")
    return lines


def separation_figure(verdicts: dict[str, list[dict[str, Any]]]) -> go.Figure:
    """AUROC of every score by method, with every seed as a point."""
    drawn = _empty()
    for score in SCORES:
        xs = [method for method, seeds in verdicts.items() for _ in seeds]
        ys = [v["eager"]["scores"][score]["auroc"] for seeds in verdicts.values() for v in seeds]
        drawn.add_scatter(x=xs, y=ys, mode="markers", name=score, marker={"size": 9})
    lowest = min(min(trace.y) for trace in drawn.data)
    drawn.update_yaxes(title="AUROC, known against out-of-scope queries", range=[lowest - 0.01, 1.0])
    drawn.update_layout(scattermode="group")
    return drawn


def lengths_figure(latency: dict[str, Any]) -> go.Figure:
    """Speed over the dense adapter by length: where routing starts to pay."""
    drawn = _empty()
    for name, times in latency["lengths"].items():
        dense = latency["lengths"][f"{DENSE}, {name.split(', ')[1]}"]
        if not name.startswith(DENSE):
            drawn.add_scatter(x=LENGTHS, y=[d / t for d, t in zip(dense, times, strict=True)], name=name)
    drawn.add_hline(1, line_dash="dot")
    drawn.update_xaxes(title="tokens of one text", type="log", tickvals=LENGTHS)
    drawn.update_yaxes(title="times as fast as the dense adapter, same precision")
    return drawn


def _empty() -> go.Figure:
    looks = {"template": "plotly_white", "margin": {"t": 20, "r": 20}}
    return go.Figure(layout={**looks, "width": SIZE[0], "height": SIZE[1]})


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="CLINC150's JSON file.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("study"), show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--latency/--no-latency", default=True, show_default=True, help="Time the models of the first seed.")
@click.option("--bf16", is_flag=True, help="Train with products in bfloat16: twice as fast where the machine has it.")
@in_a_sentence()
def main(data: Path, backbone: str, out: Path, seeds: str, methods: str, latency: bool, bf16: bool) -> None:
    logging.getLogger("adapters").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # the libraries' own
    chosen, numbers = methods.split(","), [int(seed) for seed in seeds.split(",")]
    unknown = [method for method in chosen if method not in METHODS]
    if unknown:
        raise click.ClickException(f"there is no method {unknown[0]!r}: use some of {', '.join(METHODS)}")
    queries = read_queries(data)
    task = task_of(queries, backbone)
    verdicts: dict[str, list[dict[str, Any]]] = {method: [] for method in chosen}
    results = Results(out)
    for seed in numbers:
        for method in sorted(chosen, key=lambda name: METHODS[name].reduction):  # the dense adapter before its students
            verdicts[method].append(judged(out, results, method, seed, queries, task, backbone, bf16))
    tables = [accuracy_table(verdicts), score_table(verdicts)]
    figures = {"separation.png": separation_figure(verdicts)}
    if latency:
        times = timed(out, results, chosen, numbers[0], queries, task, backbone)
        tables += [latency_table(times, chosen), lengths_table(times)]
        figures["lengths.png"] = lengths_figure(times)
    for table in tables:
        console.print("\n".join(table) + "\n", markup=False)
    if latency:
        console.print(times["machine"])
    if browser() is None:
        console.print("no pictures: Chromium is missing")
        return
    for name, figure in figures.items():
        take(figure, out / name)


if __name__ == "__main__":
    main()

"""Train CoDA and its dense baseline on film reviews, over several seeds, beside a linear SVM.

    python examples/train_reviews.py --data ../shared/data/movie_reviews.zip --backbone FOLDER_OR_HUB_NAME --out runs

Each seed trains the dense adapter (r = 1) in two phases, measures which of its layers can skip tokens, and then trains
the routed model from it and taught by it. All see the same training texts and are judged on the same held-out ones:
400, or a fifth where there are few. Every run leaves NAME.pt and NAME.json in --out, and its last whole epoch while it
is at it: a study that was interrupted goes on from there, and calls with different --seeds can share the work.
"""

import csv
import json
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split
from transformers import PreTrainedTokenizerBase, set_seed

from coda_compile.tune.agreement import LABEL
from coda_compile.tune.linear import linear_figures
from coda_models import CodaConfig, CodaModel, convert, load, save
from coda_models.backbone import load_backbone, load_tokenizer
from coda_models.config import Reduction
from coda_models.fitting.sensitivity import Sensitivity, sensitivity
from coda_models.training.collator import TextCollator
from coda_models.training.recipe import DENSE, ROUTED, Recipe, fit
from coda_models.training.train import logits_of
from coda_ops import CodaError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TOKENS = 512
HELD_OUT = 400
SENSED = 200  # training texts that say which layers can skip tokens
BATCH = 8
SHARE = 0.33  # of the dense adapter's multiply-adds, where r is measured
MEASURED = "measured"
console = Console()


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """What goes wrong is said in one sentence."""
    try:
        yield
    except CodaError as error:
        raise click.ClickException(str(error)) from None


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels from a zip of ``<name>/<label>/<file>.txt`` or a CSV with the columns text and label."""
    try:
        pairs = list(_pairs(path))
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, csv.Error):
        pairs = []
    if not pairs:
        raise click.ClickException(
            f"{path} holds no labelled texts: give a zip of NAME/LABEL/FILE.txt, or a CSV with the columns text, label"
        )
    texts, labels = zip(*pairs, strict=True)
    return list(texts), list(labels)


def write_texts(path: Path, rows: Iterable[Sequence[str]], columns: Sequence[str] = ("text", "label")) -> Path:
    """A CSV file of texts and labels, as ``read_texts`` and the commands take it, or of other columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
    return path


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt") and name.count("/") >= 2)
            yield from ((archive.read(name).decode("latin-1"), name.split("/")[-2]) for name in names)
    else:
        with path.open(newline="", encoding="utf-8") as file:
            yield from ((row["text"], row["label"]) for row in csv.DictReader(file))


def split(texts: list[str], names: list[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Training texts, held-out texts, and the labels of both; the same for every seed and every program here."""
    held_out = min(HELD_OUT, len(texts) // 5)
    train, test, train_names, test_names = train_test_split(
        texts, names, test_size=held_out, random_state=0, stratify=names
    )
    return train, test, train_names, test_names


def rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], labels: list[int], *, whole: bool = False
) -> list[dict[str, Any]]:
    """Token ids of each text, the end of it: a review's verdict stands there. The collator cuts to TOKENS."""
    longest = None if whole else TOKENS * 5 // 4  # some of them may be dropped
    ids = tokenizer(texts, truncation=not whole, max_length=longest, verbose=False)["input_ids"]
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


class Prepared(NamedTuple):
    """What is trained on and judged by: rows, the texts that they were made from, and the classes' names."""

    tokenizer: PreTrainedTokenizerBase
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    texts: tuple[list[str], list[str], list[str], list[str]]
    classes: list[str]


def prepare(data: Path, backbone: str) -> Prepared:
    """Read, split and tokenize."""
    tokenizer = load_tokenizer(backbone)
    if tokenizer is None:
        raise click.ClickException(f"{backbone} has no tokenizer")
    tokenizer.truncation_side = "left"
    texts, names = read_texts(data)
    classes = sorted(set(names))
    parts = split(texts, names)
    train, test = (rows(tokenizer, parts[i], [classes.index(name) for name in parts[i + 2]]) for i in (0, 1))
    return Prepared(tokenizer, train, test, parts, classes)


def untrained(backbone: str, classes: list[str], backbone_name: str = MINILM) -> CodaModel:
    """The encoder with adapters and a head that have learned nothing yet, at r = 1."""
    pretrained = load_backbone(
        backbone,
        "sequence-classification",
        attention_probs_dropout_prob=0.0,  # it would rule out the fused attention kernel
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    # This encoder was pretrained for the mean of its tokens; its first one never learned to sum up.
    return convert(pretrained, CodaConfig(reduction=1, pooling="mean", backbone=backbone_name))


def chosen(rows: str, known: Collection[str]) -> list[str]:
    """Names separated by commas, each one known."""
    names = rows.split(",")
    for name in names:
        if name not in known:
            raise click.ClickException(f"row {name!r} is unknown: use some of {', '.join(known)}")
    return names


def accuracy(model: CodaModel, test: list[dict[str, Any]], collator: TextCollator) -> float:
    """The share of rows whose label is the most likely one."""
    answers = logits_of(model, test, collator.plain(TOKENS)).argmax(-1)
    return float(np.mean(answers.numpy() == [row["labels"] for row in test]))


def sensed(dense: CodaModel, train: list[dict[str, Any]], collator: TextCollator) -> Sensitivity:
    """What each layer of a dense adapter loses at each r, on some training texts."""
    plain = collator.plain(TOKENS)
    batches = [dict(plain(train[start : start + BATCH])) for start in range(0, min(SENSED, len(train)), BATCH)]
    for batch in batches:
        del batch["labels"]
    return sensitivity(dense, batches, attention=dense.coda_config.attention, stand_in=dense.coda_config.bottleneck)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--backbone-name", default=MINILM, help="The name that checkpoints record.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), help="Checkpoints and results.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option(
    "--reductions",
    default=MEASURED,
    show_default=True,
    help="Routed models to train beside the dense one: r, one for each layer as in 8-1-2-8-8-8, or measured: for each "
    "layer by what skipping does to the dense adapter's answers to training texts.",
)
@click.option(
    "--share", default=SHARE, show_default=True, help="Of the dense adapter's multiply-adds, for r that is measured."
)
@click.option("--bf16", is_flag=True, help="Multiply in bfloat16: twice as fast where the machine has it.")
@in_a_sentence()
def main(
    data: Path, backbone: str, backbone_name: str, out: Path, seeds: str, reductions: str, share: float, bf16: bool
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, train_rows, test_rows, texts, classes = prepare(data, backbone)
    collator = TextCollator(tokenizer, TOKENS)

    def once(name: str, seed: int, reduction: str, recipe: Recipe, start: Path | None) -> Path:
        checkpoint, result, epochs = (out / f"{name}{suffix}" for suffix in (".pt", ".json", "-epochs"))
        if not (checkpoint.exists() and result.exists()):
            set_seed(seed)
            teacher = None
            if start is None:
                model = untrained(backbone, classes, backbone_name)
            else:
                model, teacher = (load(start, backbone=backbone).model for _ in "ab")
            chosen: Sequence[Reduction] = reduction.split("-")
            if reduction == MEASURED:
                chosen = sensed(model, train_rows, collator).choose(share).reductions
            seconds = fit(
                model,
                recipe,
                train_rows,
                collator,
                reduction=chosen if len(chosen) > 1 else chosen[0],
                folder=epochs,
                teacher=teacher,
                seed=seed,
                bf16=bf16,
                quiet=not console.is_terminal,
            )
            save(model, checkpoint, tokenizer=tokenizer, delta=True)
            by_layer = [str(layer.reduction) for layer in model.coda_layers()]
            found = {"accuracy": accuracy(model, test_rows, collator), "seconds": seconds, "reductions": by_layer}
            result.write_text(json.dumps(found) + "\n")
        done = json.loads(result.read_text())
        console.print(f"{name}: {done['accuracy']:.1%}, r = {', '.join(done['reductions'])}")
        return checkpoint

    routed = reductions.split(",")
    for seed in seeds.split(","):
        dense = once(f"seed{seed}-r1", int(seed), "1", DENSE, None)
        for reduction in routed:
            once(f"seed{seed}-r{reduction}", int(seed), reduction, ROUTED, dense)

    labels, wanted = ([row["labels"] for row in some] for some in (train_rows, test_rows))
    svm = linear_figures(LABEL, *texts[:2], labels, [np.array([label]) for label in wanted])
    table = Table("model", "held-out accuracy", "each seed", "minutes to train")
    table.add_row("linear SVM, TF-IDF word pairs, whole text", f"{svm['accuracy'].middle:.1%}", "", "")
    for reduction in ("1", *routed):
        runs = [json.loads((out / f"seed{seed}-r{reduction}.json").read_text()) for seed in seeds.split(",")]
        values = [run["accuracy"] for run in runs]
        minutes = [run["seconds"] / 60 for run in runs if run["seconds"] is not None]
        label = "dense adapter (r = 1)" if reduction == "1" else f"CoDA, r {reduction}, k-to-k"
        each = ", ".join(f"{value:.1%}" for value in values)
        table.add_row(label, f"{np.mean(values):.1%}", each, f"{np.mean(minutes):.0f}" if minutes else "unknown")
    console.print(table)
    console.print(f"{len(test_rows)} held-out texts")


if __name__ == "__main__":
    main()

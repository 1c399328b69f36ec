"""The experiments behind the training recipe: each row changes one thing of the routed phase, over several seeds.

python benchmarks/recipe_rows.py --data ../shared/data/movie_reviews.zip --backbone FOLDER --rows two-epochs,k-to-all

Every row starts from the dense adapter of its seed, which examples/train_reviews.py leaves in --dense as seedN-r1.pt,
and is taught by it. Each run leaves ROW-seedN.json in --out and goes on from its last whole epoch where it was
interrupted; --table prints the Markdown table of all that is there.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import click
from transformers import set_seed

from coda_compile.bundling.writer import layer_infos
from coda_compile.inspect.cost import layer_multiply_adds
from coda_models import CodaModel, convert, load
from coda_models.backbone import load_backbone
from coda_models.training.collator import SplicedTexts, TextCollator
from coda_models.training.recipe import ROUTED, fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        what: it tries, for people.
        reduction: r, one, one for each of MiniLM's six layers, or measured.
        config: changes of the dense adapter's CodaConfig.
        recipe: changes of ROUTED.
        spliced: train on ``SplicedTexts`` instead of the training texts.
        at: other reductions to measure the same checkpoint at.
    """

    what: str
    reduction: str | tuple[str, ...] = "4"
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    spliced: bool = False
    at: tuple[str, ...] = ()


# The recipe before it had the time for eight epochs: the teacher runs beside the student, states are taught, r rises.
LIGHT = {"epochs": 2, "batch": 16, "learning_rate": 7e-4, "hidden": 1.0, "anneal": 0.5, "dropout": None, "splice": 0.0}
UNLABELLED = {**LIGHT, "epochs": 1, "batch": 8, "distillation": 1.0, "anneal": 0.0}
ROWS: dict[str, Row] = {
    "recipe": Row("r = 4, k-to-k, as the paper has it", at=("1", "2", "3", "8", "100")),
    "r-2": Row("the same at r = 2", "2"),
    "r-8": Row("the same at r = 8", "8"),
    "k-to-all": Row("routed tokens attend to all", config={"attention": "k_to_all"}),
    "second-dense": Row("the second layer dense, the others at r = 4", ("4", "1", "4", "4", "4", "4")),
    "by-sensitivity": Row("r by each layer's measured sensitivity", train_reviews.MEASURED),
    "growing": Row("r grows with depth", ("1", "2", "4", "8", "8", "8")),
    "epsilon-1": Row("ε ends at 1: every gate is open a little", config={"epsilon_final": 1.0}),
    "drawn": Row("r drawn from 2, 4 and 8 for every step", recipe={"drawn": ("2", "4", "8")}, at=("1", "2", "8")),
    "whole-texts": Row("… no text spliced with another of its label", train_reviews.MEASURED, recipe={"splice": 0.0}),
    "dropout": Row("with the backbone's own dropout", recipe={"dropout": None}),
    "labels-only": Row("no distillation at all", recipe={"distillation": 0.0}),
    "four-epochs": Row("four epochs", recipe={"epochs": 4}),
    "two-epochs": Row("two epochs, states taught too, r rising from 1", recipe=LIGHT, at=("1", "2", "3", "8", "100")),
    "two-no-states": Row("two epochs, soft labels alone", recipe={**LIGHT, "hidden": 0.0}),
    "two-strong-states": Row("two epochs, states weigh five times as much", recipe={**LIGHT, "hidden": 5.0}),
    "spliced": Row("one epoch of spliced texts without labels", recipe=UNLABELLED, spliced=True),
    "spliced-three": Row("three epochs of spliced texts", recipe={**UNLABELLED, "epochs": 3}, spliced=True),
    "spliced-no-states": Row("spliced texts, soft labels alone", recipe={**UNLABELLED, "hidden": 0.0}, spliced=True),
}


def student_of(teacher: CodaModel, backbone: str, row: Row) -> CodaModel:
    """A model of the row's configuration that starts at the dense adapter's weights."""
    names = {"id2label": teacher.hf_config.id2label, "label2id": teacher.hf_config.label2id}
    pretrained = load_backbone(backbone, "sequence-classification", attention_probs_dropout_prob=0.0, **names)
    model = convert(pretrained, replace(teacher.coda_config, **row.config))
    model.load_state_dict(teacher.state_dict())
    return model


def spliced(prepared: "train_reviews.Prepared") -> SplicedTexts:
    """Of the whole training texts."""
    labels = [row["labels"] for row in prepared.train]
    whole = train_reviews.rows(prepared.tokenizer, prepared.texts[0], labels, whole=True)
    return SplicedTexts(whole, train_reviews.TOKENS)


def multiply_adds(model: CodaModel, tokens: int) -> int:
    """Of all layers for one text."""
    width, block = int(model.hf_config.hidden_size), next(iter(model.coda_layers())).block
    feed_forward = block.feed_forward.inner
    return sum(layer_multiply_adds(layer, tokens, width, feed_forward) for layer in layer_infos(model, tokens))


def table(folder: Path) -> str:
    """Every row that has results, in Markdown."""
    lines = ["| row | what | held-out accuracy | each seed | multiply-adds | minutes |", "|---|---|---|---|---|---|"]
    for name, row in ROWS.items():
        runs = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{name}-seed*.json"))]
        for r in runs[0]["accuracy"] if runs else ():
            values = [run["accuracy"][r] for run in runs]
            minutes = [run["seconds"] / 60 for run in runs if run["seconds"] is not None]
            what = row.what if r == next(iter(runs[0]["accuracy"])) else f"… the same checkpoint at r = {r}"
            lines.append(
                f"| {name} | {what} | {mean(values):.1%} | {', '.join(f'{value:.1%}' for value in values)} "
                f"| {runs[0]['multiply_adds'][r] / 1e9:.2f} G | {f'{mean(minutes):.0f}' if minutes else '?'} |"
            )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Zip or CSV of texts.")
@click.option("--backbone", help="Folder or hub name of the pretrained encoder.")
@click.option("--dense", type=click.Path(path_type=Path), default=Path("runs"), help="Where the dense adapters are.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("rows"), help="Results.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--rows", default=",".join(ROWS), help="Names, separated by commas.  [default: all]")
@click.option("--bf16", is_flag=True, help="Multiply in bfloat16: twice as fast where the machine has it.")
@click.option(
    "--sensitivity",
    "only_sensitivity",
    is_flag=True,
    help="What each layer alone at r, its stand-in fitted, does to the answers of each dense adapter, in nats.",
)
@click.option("--table", "only_table", is_flag=True, help="Print the table of what is there, and train nothing.")
@train_reviews.in_a_sentence()
def main(
    data: Path | None,
    backbone: str | None,
    dense: Path,
    out: Path,
    seeds: str,
    rows: str,
    bf16: bool,
    only_sensitivity: bool,
    only_table: bool,
) -> None:
    if only_table:
        click.echo(table(out))
        return
    if data is None or backbone is None:
        raise click.UsageError("training needs --data and --backbone")
    names = train_reviews.chosen(rows, ROWS)
    out.mkdir(parents=True, exist_ok=True)
    prepared = train_reviews.prepare(data, backbone)
    collator = TextCollator(prepared.tokenizer, train_reviews.TOKENS)
    for seed in map(int, seeds.split(",")):
        if only_sensitivity:
            teacher = load(dense / f"seed{seed}-r1.pt", backbone=backbone).model
            measured = train_reviews.sensed(teacher, prepared.train, collator)
            for i, losses in enumerate(measured.divergences):
                click.echo(f"seed {seed}, layer {i}: " + ", ".join(f"r = {r} {loss:.3f}" for r, loss in losses.items()))
            continue
        for name in names:
            row, result, epochs = ROWS[name], out / f"{name}-seed{seed}.json", out / f"{name}-seed{seed}-epochs"
            if result.exists():
                continue
            teacher = load(dense / f"seed{seed}-r1.pt", backbone=backbone).model
            reduction: Any = row.reduction
            if reduction == train_reviews.MEASURED:
                measured = train_reviews.sensed(teacher, prepared.train, collator)
                reduction = measured.choose(train_reviews.SHARE).reductions
            set_seed(seed)
            model = student_of(teacher, backbone, row)
            seconds = fit(
                model,
                replace(ROUTED, **row.recipe),
                spliced(prepared) if row.spliced else prepared.train,
                collator,
                reduction=reduction,
                folder=epochs,
                teacher=teacher,
                seed=seed,
                bf16=bf16,
            )
            found: dict[str, Any] = {"accuracy": {}, "multiply_adds": {}, "seconds": seconds}
            for r in (reduction, *row.at):
                model.set_reduction(r)
                key = r if isinstance(r, str) else " ".join(map(str, r))
                found["accuracy"][key] = train_reviews.accuracy(model, prepared.test, collator)
                found["multiply_adds"][key] = multiply_adds(model, train_reviews.TOKENS)
            result.write_text(json.dumps(found) + "\n")
            click.echo(f"{name}, seed {seed}: {found['accuracy']}")
    if not only_sensitivity:
        click.echo(table(out))


if __name__ == "__main__":
    main()

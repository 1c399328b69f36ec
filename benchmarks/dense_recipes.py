"""How to train the dense adapter: ways to, each cross-validated on the training texts alone.

python benchmarks/dense_recipes.py --data ../shared/data/movie_reviews.zip --backbone FOLDER

Four folds; the texts that examples/train_reviews.py holds out take no part. Each run leaves NAME-foldN.json in --out
and is not done again; --table prints the Markdown table of all that is there. With --seeds the dense adapters
themselves are made, from all training texts and judged on the held-out ones, for benchmarks/recipe_rows.py to start
from: --dense OUT/NAME there.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import click
from transformers import set_seed

from coda_models import CodaModel, save
from coda_models.training.collator import TextCollator
from coda_models.training.recipe import DENSE, ROUTED, Recipe, fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

FOLDS = 4
SHORT = replace(DENSE, epochs=5, learning_rate=1e-3, splice=0.0)
RECIPES: dict[str, tuple[Recipe, ...]] = {  # one after the other, the later ones taught by what the one before left
    "five-epochs": (SHORT,),
    "whole-windows": (replace(SHORT, stages=((train_reviews.TOKENS, 1.0),)),),
    "small-batches": (replace(SHORT, batch=8, learning_rate=7e-4),),
    "eight-epochs": (replace(SHORT, epochs=8),),
    "slow": (replace(SHORT, epochs=8, learning_rate=5e-4),),
    "more-dropped": (replace(SHORT, epochs=8, drop=0.3),),
    "spliced": (replace(SHORT, epochs=8, splice=0.5),),
    "no-dropout": (replace(SHORT, epochs=8, splice=0.5, dropout=0.0),),
    "slow-spliced": (DENSE,),
    "taught": (SHORT, ROUTED),
}


def table(folder: Path) -> str:
    """Every recipe that has results, in Markdown."""
    lines = ["| row | epochs | accuracy | each fold |", "|---|---|---|---|"]
    for name, recipes in RECIPES.items():
        values = [json.loads(path.read_text("utf-8"))["accuracy"] for path in sorted(folder.glob(f"{name}-fold*.json"))]
        if values:
            epochs = " + ".join(str(recipe.epochs) for recipe in recipes)
            lines.append(f"| {name} | {epochs} | {mean(values):.1%} | {', '.join(f'{v:.1%}' for v in values)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Zip or CSV of texts.")
@click.option("--backbone", help="Folder or hub name of the pretrained encoder.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("dense"), help="Results.")
@click.option("--rows", default=",".join(RECIPES), help="Names, separated by commas.  [default: all]")
@click.option("--seeds", help="Make dense adapters of these seeds, separated by commas, instead of cross-validating.")
@click.option("--bf16", is_flag=True, help="Multiply in bfloat16: twice as fast where the machine has it.")
@click.option("--table", "only_table", is_flag=True, help="Print the table of what is there, and train nothing.")
@train_reviews.in_a_sentence()
def main(
    data: Path | None, backbone: str | None, out: Path, rows: str, seeds: str | None, bf16: bool, only_table: bool
) -> None:
    if only_table:
        click.echo(table(out))
        return
    if data is None or backbone is None:
        raise click.UsageError("training needs --data and --backbone")
    names = train_reviews.chosen(rows, RECIPES)
    out.mkdir(parents=True, exist_ok=True)
    prepared = train_reviews.prepare(data, backbone)
    collator = TextCollator(prepared.tokenizer, train_reviews.TOKENS)

    def trained(name: str, run: Path, rows: list[dict[str, Any]], seed: int) -> CodaModel:
        set_seed(seed)
        model, teacher = train_reviews.untrained(backbone, prepared.classes), None
        for i, recipe in enumerate(RECIPES[name]):
            folder = run.with_name(f"{run.name}-epochs{i}")
            fit(model, recipe, rows, collator, reduction=1, folder=folder, teacher=teacher, seed=seed, bf16=bf16)
            teacher = model  # its answers are asked for before the next recipe changes it
        return model

    for name in names:
        for seed in map(int, seeds.split(",") if seeds else ()):
            run = out / name / f"seed{seed}-r1"
            run.parent.mkdir(exist_ok=True)
            if not run.with_suffix(".pt").exists():
                model = trained(name, run, prepared.train, seed)
                save(model, run.with_suffix(".pt"), tokenizer=prepared.tokenizer, delta=True)
                click.echo(f"{name}, seed {seed}: {train_reviews.accuracy(model, prepared.test, collator):.1%}")
        for fold in range(0 if seeds else FOLDS):
            run = out / f"{name}-fold{fold}"
            if not run.with_suffix(".json").exists():
                train = [row for i, row in enumerate(prepared.train) if i % FOLDS != fold]
                model = trained(name, run, train, fold)
                found = train_reviews.accuracy(model, prepared.train[fold::FOLDS], collator)
                run.with_suffix(".json").write_text(json.dumps({"accuracy": found}) + "\n")
                click.echo(f"{name}, fold {fold}: {found:.1%}")
    if not seeds:
        click.echo(table(out))


if __name__ == "__main__":
    main()

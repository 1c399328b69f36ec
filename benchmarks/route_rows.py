"""A dense classifier routed in many ways: one line for each, the mean of some seeds.

python benchmarks/finetune_queries.py --queries ../shared/data/clinc150.json --backbone FOLDER --out queries
python benchmarks/route_rows.py queries/model --texts queries/texts.csv --held-out queries/held-out.csv \
    --row 4 --row 8,rank=16 --seeds 0,1,2

A row is r, or a share of the multiply-adds as in 0.2 for r by layer, followed by what differs from the command:

    attention=k_to_k
    routers=cost, key, random, first, norm or received (the attention that a token receives)
    rank=N, keys=N      of stand-ins, and of keys and values (0: exact)
    texts=N             that are fitted to; router_texts=N of them by the routers
    domain=other        they are those of --other, cut to as many words as the median text has
    fit=local           stand-ins fitted to the layer's own update; fit=bent: half of each is ReLU units
    readout=0
    steps=N, rate=X, fitted_rate=X      of distillation
    epochs=N            of the recipe of training from labels, behind the fit

A seed draws the texts that are fitted to. Accuracy and agreement with the dense model are of the held-out texts, which
are the same for all. Nothing but epochs sees a label.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from join_queries import train_reviews
from route_parts import RULES, bend_stand_ins, route_by
from torch import Tensor

from coda_compile import RouteOptions
from coda_compile.statistics import Interval
from coda_compile.text_files import Row, read_table
from coda_compile.tune.dense import read_dense
from coda_compile.tune.held_out import HeldOut, labels_of
from coda_compile.tune.texts import Batch, Texts, apart, batches, split
from coda_models import distill, fit_stand_ins, mend_readout
from coda_models.conversion import add_stand_ins
from coda_models.fitting.route import fitted_routers, set_routers
from coda_models.fitting.sensitivity import sensitivity
from coda_models.model import CodaModel, CodaOutput
from coda_models.training.collator import TextCollator
from coda_models.training.distill import Steps
from coda_models.training.recipe import ROUTED, fit
from coda_ops.errors import CodaError

DEFAULTS = {
    "attention": "k_to_all",
    "routers": "both",
    "rank": "64",
    "keys": "64",
    "texts": "400",
    "router_texts": "",
    "domain": "own",
    "fit": "corrected",
    "readout": "1",
    "steps": "0",
    "rate": str(Steps().rate),
    "fitted_rate": str(Steps().fitted_rate),
    "epochs": "0",
}
_ASIDE = 0.1  # share of the texts by which steps are judged


class Remembering(CodaModel):
    """The dense model, which computes a batch once and remembers what its last layer gave."""

    _given: dict[Tensor, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: CodaModel) -> "Remembering":
        """The same weights."""
        made = deepcopy(model)
        made.__class__ = cls
        assert isinstance(made, cls)
        made._given = {}
        return made

    def forward(self, **inputs: Any) -> CodaOutput:
        """As the model itself, of inputs alone."""
        batch = inputs[self.signature.lead.name]
        if batch not in self._given:
            x, mask, table = self.embed(inputs)
            for layer in self.coda_layers():
                x = layer.dense(x, mask, table)
            self._given[batch] = x, mask
        return self.answer(*self._given[batch])


class Rows:
    """Rows of one dense model.

    Args:
        model, texts, held_out: as ``coda-compile route`` takes them, with labels.
        count: of held-out texts, at most.
        other: a file of texts of another domain, as examples/train_reviews.py takes it.
    """

    def __init__(self, model: Path, texts: Path, held_out: Path, count: int, other: Path | None) -> None:
        source = read_dense(model, RouteOptions())
        assert source.tokenizer is not None
        self._dense, self._tokenizer, self._path, self._other = source.model, source.tokenizer, texts, other
        self._remembering = Remembering.of(self._dense)
        self._texts = apart(read_table(texts, "label"), texts, read_table(held_out, "label")[:count], held_out)
        judged = self._batches(self._texts.held_out)
        self._held_out = HeldOut(self._dense, judged, labels_of(self._dense, self._texts.held_out))
        self._parts, self._routers = cache(self._parts_of), cache(self._routers_of)

    def dense(self) -> str:
        """What all rows are measured against."""
        return f"dense {100 * self._held_out.accuracy['accuracy'].middle:.1f}, {len(self._held_out)} held-out texts"

    def line(self, spec: str, seeds: Sequence[int]) -> str:
        """One line of results."""
        began = time.perf_counter()
        found = [self.row(spec, seed) for seed in seeds]
        right, same = ([100 * one.middle for one in rows] for rows in zip(*((a, b) for a, b, _ in found), strict=True))
        each, alike = (", ".join(f"{one:.1f}" for one in figures) for figures in (right, same))
        seconds = (time.perf_counter() - began) / len(seeds)
        share = mean(share for *_, share in found)
        accuracy, agreement = f"{mean(right):.1f} ({each})", f"as dense {mean(same):.1f} ({alike})"
        return f"{spec}: {accuracy}, {agreement}, work {share:.2f}, {seconds:.0f} s"

    def row(self, spec: str, seed: int) -> tuple[Interval, Interval, float]:
        """Accuracy, share of texts with the dense model's label, share of its multiply-adds."""
        reduction, *changes = spec.split(",")
        asked = DEFAULTS | dict(change.split("=") for change in changes)
        if unknown := asked.keys() - DEFAULTS.keys():
            raise click.BadParameter(f"{', '.join(unknown)} is unknown: use {', '.join(DEFAULTS)}")
        steps, epochs = int(asked["steps"]), int(asked["epochs"])
        (fitted, on), (_, readout), aside = self._parts(seed, int(asked["texts"]), bool(steps), asked["domain"])
        model = self._fitted(reduction, asked, seed, fitted, on)
        if int(asked["readout"]):
            mend_readout(model, self._remembering, readout)
        with TemporaryDirectory() as folder:
            if steps:
                recipe = Steps(rate=float(asked["rate"]), fitted_rate=float(asked["fitted_rate"]))
                where = Path(folder) / "steps"
                distill(model, self._dense, readout, aside=aside, steps=steps, folder=where, recipe=recipe, seed=seed)
            if epochs:
                self._train(model, epochs, Path(folder) / "epochs", seed)
        found = self._held_out.measure(model, self._path, reduction, seconds=0.0)
        return found.accuracy["accuracy"], found.agreement["same label"], found.share

    def _fitted(
        self,
        reduction: str,
        asked: Mapping[str, str],
        seed: int,
        fitted: tuple[Row, ...],
        on: Sequence[dict[str, Tensor]],
    ) -> CodaModel:
        """Routers and stand-ins as a row has them, at r or within a share."""
        attention, rank, by = asked["attention"], int(asked["rank"]), asked["routers"]
        keys = 0 if attention == "k_to_k" else int(asked["keys"])
        weights = None
        if by not in RULES and by != "random":
            weights = self._routers(fitted[: int(asked["router_texts"] or asked["texts"])], by)
        r: Any = reduction
        if "." in reduction:
            found = sensitivity(
                self._dense, on, attention=attention, stand_in=rank, key_value_rank=keys, routers=weights
            )
            r = found.choose(float(reduction)).reductions
        model = deepcopy(self._dense)
        torch.manual_seed(seed)
        add_stand_ins(model, reduction=r, attention=attention, stand_in=rank, key_value_rank=keys)
        if by in RULES:
            route_by(model, by)
        elif weights is not None:
            set_routers(model, weights)
        fit_stand_ins(model, on, corrected=asked["fit"] != "local")
        if asked["fit"] == "bent":
            bend_stand_ins(model, self._dense, on)
        return model

    def _routers_of(self, fitted: tuple[Row, ...], by: str) -> list[Tensor]:
        """Fitted to some texts, the same in every row."""
        return fitted_routers(self._dense, [batch.inputs for batch in self._batches(fitted)], by=by)

    def _parts_of(self, seed: int, count: int, aside: bool, domain: str) -> tuple[Any, Any, list[dict[str, Tensor]]]:
        """Texts to fit on and those of the readout, each with their batches, and batches kept aside."""
        rows = self._texts.others
        if domain != "own":
            if self._other is None:
                raise click.BadParameter("domain=other needs texts of another domain: give --other")
            own = (row.text if isinstance(row.text, str) else " ".join(row.text) for row in rows)
            words = int(median(len(text.split()) for text in own))
            texts, _ = train_reviews.read_texts(self._other)
            rows = [Row(" ".join(text.split()[:words]), "", "") for text in texts]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        parts = split(Texts([rows[i] for i in order], [], self._path), fit_texts=count, aside=_ASIDE if aside else 0.0)
        readout = parts.fit if count < int(DEFAULTS["texts"]) else parts.readout
        fit_on, read_on, judged = (
            [batch.inputs for batch in self._batches(some)] for some in (parts.fit, readout, parts.aside)
        )
        return (tuple(parts.fit), fit_on), (tuple(readout), read_on), judged

    def _batches(self, rows: Sequence[Row]) -> list[Batch]:
        return batches(rows, self._tokenizer, self._dense.signature)

    def _train(self, model: CodaModel, epochs: int, folder: Path, seed: int) -> None:
        """By the recipe of docs/recipe.md, on all texts and their labels."""
        torch.manual_seed(seed)
        rows = self._texts.others
        tokens = self._dense.signature.max_length
        assert tokens is not None
        texts = [row.text for row in rows]
        ids = self._tokenizer(texts, truncation=True, max_length=tokens)["input_ids"]
        labels = labels_of(self._dense, rows)
        data = [{"input_ids": one, "labels": int(label[0])} for one, label in zip(ids, labels, strict=True)]
        r = model.coda_config.layer_reductions(len(model.layers))
        recipe, collator = replace(ROUTED, epochs=epochs), TextCollator(self._tokenizer, tokens)
        model.freeze_backbone()
        fit(model, recipe, data, collator, reduction=r, folder=folder, teacher=self._dense, seed=seed)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--texts", type=click.Path(exists=True, path_type=Path), required=True, help="CSV with text and label.")
@click.option("--held-out", type=click.Path(exists=True, path_type=Path), required=True, help="The same of others.")
@click.option("--other", type=click.Path(exists=True, path_type=Path), help="CSV or zip of texts of another domain.")
@click.option("--count", default=1200, show_default=True, help="Held-out texts.")
@click.option("--row", "rows", multiple=True, default=("4",), show_default=True)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas.")
@click.option("--threads", default=1, show_default=True)
def main(
    model: Path,
    texts: Path,
    held_out: Path,
    other: Path | None,
    count: int,
    rows: tuple[str, ...],
    seeds: str,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    try:
        made = Rows(model, texts, held_out, count, other)
        click.echo(made.dense())
        for row in rows:
            click.echo(made.line(row, [int(seed) for seed in seeds.split(",")]))
    except CodaError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()

"""A dense classifier routed in many ways, without labels: one line for each, the mean of some seeds.

python benchmarks/finetune_queries.py --queries ../shared/data/clinc150.json --backbone FOLDER --out queries
python benchmarks/route_rows.py queries/model --texts queries/texts.csv --held-out queries/held-out.csv \
    --row 4 --row 8,rank=16 --seeds 0,1,2

A row is r, followed by what differs from the command: attention=k_to_k, routers=cost, key, random, first, norm or
received (the attention that a token receives), rank, keys (rank of keys and values; 0: exact), texts, fit=local,
readout=0, steps. A seed draws the texts that are fitted to. Accuracy and agreement with the dense model are of the
held-out texts, which are the same for all.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import click
import torch
from torch import Tensor, nn

from coda_compile import RouteOptions
from coda_compile.statistics import Interval
from coda_compile.text_files import read_table
from coda_compile.tune.dense import read_dense
from coda_compile.tune.held_out import HeldOut, labels_of
from coda_compile.tune.texts import Texts, apart, batches, split
from coda_models import distill, fit_routers, fit_stand_ins, mend_readout
from coda_models.conversion import add_stand_ins
from coda_models.layers.layer import Block, CodaLayer
from coda_ops.errors import CodaError

DEFAULTS = {
    "attention": "k_to_all",
    "routers": "both",
    "rank": "64",
    "keys": "64",
    "texts": "400",
    "fit": "corrected",
    "readout": "1",
    "steps": "0",
}
_ASIDE = 0.1  # share of the texts by which steps are judged
DEVIATION = 0.3  # of the scores within a text, as ``fit_routers`` has it


class Ranked(nn.Module, ABC):
    """A router of another kind: scores of a text by a rule, with the deviation of fitted ones."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = [block]  # no part of it

    def forward(self, read: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, tokens]"""
        scores = self.rule(read).float()
        return DEVIATION * (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-6)

    @abstractmethod
    def rule(self, read: Tensor) -> Tensor:
        """What tokens are ranked by. [batch, tokens]"""


class First(Ranked):
    """The first k tokens."""

    def rule(self, read: Tensor) -> Tensor:
        return -torch.arange(read.shape[1]).expand(read.shape[:2])


class Norm(Ranked):
    """Those of the largest states."""

    def rule(self, read: Tensor) -> Tensor:
        return read.norm(dim=-1)


class Received(Ranked):
    """Those that the layer itself attends to, mean over heads and queries; padding, of which there is little, too."""

    def rule(self, read: Tensor) -> Tensor:
        attention = self.block[0].attention
        query, key = (
            product(read).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for product in (attention.query, attention.key)
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        return logits.softmax(-1).mean((1, 2))


RULES = {"first": First, "norm": Norm, "received": Received}


class Rows:
    """Rows of one dense model.

    Args:
        model, texts, held_out: as ``coda-compile route`` takes them, with labels.
    """

    def __init__(self, model: Path, texts: Path, held_out: Path, count: int) -> None:
        source = read_dense(model, RouteOptions())
        assert source.tokenizer is not None
        self._dense, self._tokenizer, self._path = source.model, source.tokenizer, texts
        self._texts = apart(read_table(texts, "label"), texts, read_table(held_out, "label")[:count], held_out)
        judged = batches(self._texts.held_out, self._tokenizer, self._dense.signature)
        self._held_out = HeldOut(self._dense, judged, labels_of(self._dense, self._texts.held_out))

    def dense(self) -> str:
        """What all rows are measured against."""
        return f"dense {100 * self._held_out.accuracy['accuracy'].middle:.1f}, {len(self._held_out)} held-out texts"

    def line(self, spec: str, seeds: Sequence[int]) -> str:
        """One line of results."""
        began = time.perf_counter()
        found = [self.row(spec, seed) for seed in seeds]
        right, same = ([100 * one.middle for one in rows] for rows in zip(*((a, b) for a, b, _ in found), strict=True))
        each = ", ".join(f"{one:.1f}" for one in right)
        seconds = (time.perf_counter() - began) / len(seeds)
        return f"{spec}: {mean(right):.1f} ({each}), as dense {mean(same):.1f}, work {found[0][2]:.2f}, {seconds:.0f} s"

    def row(self, spec: str, seed: int) -> tuple[Interval, Interval, float]:
        """Accuracy, share of texts with the dense model's label, share of its multiply-adds."""
        reduction, *changes = spec.split(",")
        asked = DEFAULTS | dict(change.split("=") for change in changes)
        if unknown := asked.keys() - DEFAULTS.keys():
            raise click.BadParameter(f"{', '.join(unknown)} is unknown: use {', '.join(DEFAULTS)}")
        steps = int(asked["steps"])
        order = torch.randperm(len(self._texts.others), generator=torch.Generator().manual_seed(seed))
        parts = split(
            Texts([self._texts.others[i] for i in order], [], self._path),
            fit_texts=int(asked["texts"]),
            aside=_ASIDE if steps else 0.0,
        )
        readout = parts.fit if int(asked["texts"]) < int(DEFAULTS["texts"]) else parts.readout
        fit, readout = (
            [batch.inputs for batch in batches(rows, self._tokenizer, self._dense.signature)]
            for rows in (parts.fit, readout)
        )
        k_to_k = asked["attention"] == "k_to_k"
        model = deepcopy(self._dense)
        torch.manual_seed(seed)
        add_stand_ins(
            model,
            reduction=reduction,
            attention=asked["attention"],
            stand_in=int(asked["rank"]),
            key_value_rank=0 if k_to_k else int(asked["keys"]),
        )
        by = asked["routers"]
        if by in RULES:
            for layer in model.coda_layers():
                set_rule(layer, RULES[by])
        elif by != "random":
            fit_routers(model, fit, by=by)
        fit_stand_ins(model, fit, corrected=asked["fit"] == "corrected")
        if int(asked["readout"]):
            mend_readout(model, self._dense, readout)
        if steps:
            judged = batches(parts.aside, self._tokenizer, self._dense.signature)
            with TemporaryDirectory() as folder:
                distill(
                    model,
                    self._dense,
                    readout,
                    aside=[batch.inputs for batch in judged],
                    steps=steps,
                    folder=Path(folder) / "steps",
                    seed=seed,
                )
        found = self._held_out.measure(model, self._path, reduction, seconds=0.0)
        return found.accuracy["accuracy"], found.agreement["same label"], found.share


def set_rule(layer: CodaLayer, rule: type[Ranked]) -> None:
    """Route by a rule instead of a vector."""
    layer.router = rule(layer.block)  # type: ignore[assignment]  # it is called alike


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--texts", type=click.Path(exists=True, path_type=Path), required=True, help="CSV with text and label.")
@click.option("--held-out", type=click.Path(exists=True, path_type=Path), required=True, help="The same of others.")
@click.option("--count", default=1200, show_default=True, help="Held-out texts.")
@click.option("--row", "rows", multiple=True, default=("4",), show_default=True)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas.")
def main(model: Path, texts: Path, held_out: Path, count: int, rows: tuple[str, ...], seeds: str) -> None:
    torch.set_num_threads(1)
    try:
        made = Rows(model, texts, held_out, count)
        click.echo(made.dense())
        for row in rows:
            click.echo(made.line(row, [int(seed) for seed in seeds.split(",")]))
    except CodaError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()

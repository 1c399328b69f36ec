"""How far a routed model's states are from its dense adapter's after every layer: where its loss comes from.

python benchmarks/state_distance.py --data ../shared/data/movie_reviews.zip --backbone FOLDER --dense DENSE.pt MODEL.pt

Mean squared distance relative to the variance of the dense model's states, over the tokens of 64 held-out texts: all,
the routed ones and the others; with both forms of attention, whichever the model was trained with.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coda_models import CodaModel, load
from coda_models.config import ATTENTIONS
from coda_models.training.collator import TextCollator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

TEXTS, BATCH = 64, 8


class Seen(NamedTuple):
    """After every layer: states [all valid tokens, width], and which of those tokens it routed; all where dense."""

    states: list[Tensor]
    routed: list[Tensor]


@torch.inference_mode()
def run(model: CodaModel, batches: list[dict[str, Tensor]]) -> Seen:
    """All batches through one model."""
    states: list[list[Tensor]] = [[] for _ in model.layers]
    routed: list[list[Tensor]] = [[] for _ in model.layers]
    for batch in batches:
        valid = model.mask(batch)
        inputs = {name: batch[name] for name in model.signature.names if name in batch}
        output = model(**inputs, output_hidden_states=True, output_routing=True)
        for i, routing in enumerate(output.routing):
            states[i].append(output.hidden_states[i + 1][valid])
            chosen = valid if routing is None else torch.zeros_like(valid).scatter(1, routing.indices, routing.used)
            routed[i].append(chosen[valid])
    return Seen([torch.cat(parts) for parts in states], [torch.cat(parts) for parts in routed])


def distances(seen: Seen, wanted: Seen) -> list[tuple[float, float, float]]:
    """Of each layer: over all tokens, the routed ones, the others."""
    found = []
    for own, other, chosen in zip(seen.states, wanted.states, seen.routed, strict=True):
        apart = (own - other).square().mean(-1) / other.var()
        found.append((float(apart.mean()), float(apart[chosen].mean()), float(apart[~chosen].mean())))
    return found


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.option("--dense", type=click.Path(exists=True, path_type=Path), required=True, help="The dense adapter model.")
@click.option("-r", "reductions", multiple=True, help="Reductions to run at.  [default: the model's own]")
def main(model: Path, data: Path, backbone: str, dense: Path, reductions: tuple[str, ...]) -> None:
    prepared = train_reviews.prepare(data, backbone)
    collator = TextCollator(prepared.tokenizer, train_reviews.TOKENS)
    texts = prepared.test[:TEXTS]
    batches = [collator(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    wanted = run(load(dense, backbone=backbone).model, batches)
    routed = load(model, backbone=backbone).model
    table = Table("r", "attention", "tokens", *map(str, range(len(routed.layers))), title="after each layer")
    for r in reductions or (routed.coda_config.reduction,):
        routed.set_reduction(r)
        for attention in ATTENTIONS:
            routed.set_attention(attention)
            rows = zip(*distances(run(routed, batches), wanted), strict=True)
            for name, row in zip(("all", "routed", "others"), rows, strict=True):
                table.add_row(str(r), attention, name, *(f"{value:.3f}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    main()

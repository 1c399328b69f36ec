"""How open the gates of a trained model are, layer by layer: what pruning slots by a threshold could save.

python benchmarks/gate_levels.py --data ../shared/data/movie_reviews.zip --backbone FOLDER examples/reviews.pt
"""

import sys
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from coda_models import load
from coda_models.train import TailCollator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import train_reviews

TEXTS, BATCH = 64, 8


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="Zip or CSV of texts.")
@click.option("--backbone", required=True, help="Folder or hub name of the pretrained encoder.")
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@train_reviews.in_a_sentence()
@torch.inference_mode()
def main(data: Path, backbone: str, model: Path) -> None:
    routed = load(model, backbone=backbone).model.eval()
    prepared = train_reviews.prepare(data, backbone)
    collator = TailCollator(prepared.tokenizer, train_reviews.TOKENS)
    gates: list[list[torch.Tensor]] = [[] for _ in routed.layers]
    for start in range(0, TEXTS, BATCH):
        batch = collator(prepared.test[start : start + BATCH])
        output = routed(batch["input_ids"], batch["attention_mask"], output_routing=True)
        for found, routing in zip(gates, output.routing, strict=True):
            if routing is not None:
                found.append(routing.gates[routing.used])
    table = Table("layer", "r", "lowest gate", "under 0.05", "under 0.2", "open (above 0.99)")
    for i, (found, layer) in enumerate(zip(gates, routed.coda_layers(), strict=True)):
        if found:
            every = torch.cat(found)
            shares = [float((every < top).float().mean()) for top in (0.05, 0.2)]
            cells = [f"{share:.2%}" for share in (*shares, float((every > 0.99).float().mean()))]
            table.add_row(str(i), str(layer.reduction), f"{float(every.min()):.4f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

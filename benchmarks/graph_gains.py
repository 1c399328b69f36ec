"""What compiling an ONNX file gains: BERT-shaped models with an unmerged LoRA, as torch's exporters write them.

python benchmarks/graph_gains.py --tokens 128 --tokens 512
"""

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import peft
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from coda_compile import compile
from coda_compile.bench import table
from coda_compile.bench.turns import Contender, in_turns
from coda_targets.modalities.text import text_signature

SIGNATURE = text_signature(30_522, 512, types=2)


class Logits(nn.Module):
    """A classifier as exporters take it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(SIGNATURE.names, inputs, strict=True))).logits
        return logits


def export(model: nn.Module, path: Path, *, dynamo: bool) -> Path:
    """A model with dynamic batch and sequence, LoRA's branches as they are."""
    path.parent.mkdir()
    ids = torch.ones(2, 11, dtype=torch.int64)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    dynamic = {"dynamic_shapes": {"inputs": (axes,) * 3}}
    names = {"dynamic_axes": {name: {0: "batch", 1: "sequence"} for name in SIGNATURE.names}}
    torch.onnx.export(
        Logits(model).eval(),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(path),
        dynamo=dynamo,
        input_names=list(SIGNATURE.names),
        output_names=["logits"],
        opset_version=20 if dynamo else 17,
        verbose=False,
        **(dynamic if dynamo else names),
    )
    return path


@click.command(help=__doc__)
@click.option("--width", default=384, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--tokens", multiple=True, type=click.IntRange(1), default=(128,), show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4))
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: all cores]")
def main(width: int, layers: int, tokens: tuple[int, ...], rounds: int, threads: int) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # the exporters' own
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32, intermediate_size=4 * width
    )
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "key", "value"], init_lora_weights=False)
    model = peft.get_peft_model(BertForSequenceClassification(config), lora).eval()
    with TemporaryDirectory(prefix="coda-graphs-") as name:
        contenders = []
        for exporter, dynamo in (("torch.export", True), ("TorchScript", False)):
            path = export(model, Path(name) / exporter / "model.onnx", dynamo=dynamo)
            contenders.append(Contender(f"{exporter}'s file", "onnx", {"path": str(path)}))
            bundle = compile(path, output=Path(name) / f"{exporter}-bundle").folder
            contenders.append(Contender.of_bundle(f"{exporter}'s file, compiled", bundle))
        inputs = [SIGNATURE.random(1, n) for n in tokens]
        timings = in_turns(contenders, inputs, rounds=rounds, threads=threads)
    for case, n in enumerate(tokens):
        for plain, compiled in zip(contenders[::2], contenders[1::2], strict=True):
            pair = {one.name: timings[one.name] for one in (plain, compiled)}
            table.variants(f"1 x {n} tokens, {layers} x {width}", pair, plain.name, case)
    table.conditions(rounds, threads)


if __name__ == "__main__":
    main()

"""What is left to pay for an adapter method once it is compiled: BERT-shaped models of random weights, timed in turns.

python benchmarks/adapter_costs.py --tokens 128 --tokens 512
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from coda_compile import compile
from coda_compile.bench import table
from coda_compile.bench.turns import Contender, in_turns
from coda_targets.modalities.text import text_signature

VOCABULARY = 30_522
PLAIN = "full fine-tuning"


def _peft(make: Callable[[Any], Any]) -> Callable[[Path, Path], None]:
    def save(base: Path, folder: Path) -> None:
        import peft

        peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), make(peft)).save_pretrained(
            folder
        )

    return save


def _adapterhub(make: Callable[[Any], Any]) -> Callable[[Path, Path], None]:
    def save(base: Path, folder: Path) -> None:
        import adapters

        model = adapters.AutoAdapterModel.from_pretrained(base)
        model.add_adapter("task", config=make(adapters))
        model.add_classification_head("task", num_labels=2, layers=1, use_pooler=True)
        model.active_adapters = "task"
        folder.mkdir()
        model.save_adapter(str(folder), "task")

    return save


METHODS: dict[str, Callable[[Path, Path], None]] = {
    "LoRA, PEFT": _peft(lambda peft: peft.LoraConfig(task_type="SEQ_CLS", r=8)),
    "prefix-tuning of 20, PEFT": _peft(
        lambda peft: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20)
    ),
    "P-tuning of 20, PEFT": _peft(
        lambda peft: peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128)
    ),
    "prefix-tuning of 30, AdapterHub": _adapterhub(lambda adapters: adapters.PrefixTuningConfig()),
    "Pfeiffer of 24, AdapterHub": _adapterhub(lambda adapters: adapters.SeqBnConfig(reduction_factor=16)),
    "Houlsby of 24, AdapterHub": _adapterhub(lambda adapters: adapters.DoubleSeqBnConfig(reduction_factor=16)),
    "Houlsby of 64, AdapterHub": _adapterhub(lambda adapters: adapters.DoubleSeqBnConfig(reduction_factor=6)),
    "parallel of 192, AdapterHub": _adapterhub(lambda adapters: adapters.ParBnConfig(reduction_factor=2)),
}


@click.command(help=__doc__)
@click.option("--width", default=384, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1))
@click.option("--tokens", multiple=True, type=click.IntRange(1), default=(128,), show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(4))
@click.option("--threads", default=0, type=click.IntRange(0), help="[default: all cores]")
def main(width: int, layers: int, batch: int, tokens: tuple[int, ...], rounds: int, threads: int) -> None:
    logging.getLogger("adapters").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # the libraries' own
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32, intermediate_size=4 * width
    )
    with TemporaryDirectory(prefix="coda-adapters-") as name:
        folder = Path(name)
        base = folder / "base"
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(base)
        bundles = {PLAIN: compile(base, output=folder / "plain").folder}
        for i, (method, save) in enumerate(METHODS.items()):
            save(base, folder / f"source{i}")
            bundles[method] = compile(folder / f"source{i}", output=folder / f"bundle{i}").folder
        contenders = [Contender.of_bundle(method, bundle) for method, bundle in bundles.items()]
        longest = config.max_position_embeddings - 30  # a prefix takes positions of its own
        signature = text_signature(VOCABULARY, longest, types=2)
        inputs = [signature.random(batch, min(n, longest)) for n in tokens]
        timings = in_turns(contenders, inputs, rounds=rounds, threads=threads)
    for case, feed in enumerate(inputs):
        shape = " x ".join(map(str, signature.shape(feed)))
        table.variants(f"{shape} tokens, {layers} x {width}", timings, PLAIN, case)
    table.conditions(rounds, threads)


if __name__ == "__main__":
    main()

"""Layers that are computed twice: the same gradients, less kept, and Trainer's own switch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_coda
from tests.models.inputs import ragged
from tests.models.training.test_train import rows
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from coda_models import CodaConfig, CodaModel
from coda_models.errors import ConfigError
from coda_models.training.collator import TextCollator
from coda_models.training.train import CodaTrainer, training_arguments


def count_calls(model: CodaModel) -> list[int]:
    """How often each layer is computed from now on."""
    calls = [0] * len(model.layers)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    for i, layer in enumerate(model.coda_layers()):
        layer.block.feed_forward.up.register_forward_pre_hook(count(i))
    return calls


def gradients(model: CodaModel) -> tuple[list[int], dict[str, Tensor]]:
    calls = count_calls(model)
    torch.manual_seed(0)  # dropout
    model(**ragged([9, 4, 14]), labels=torch.tensor([2, 0, 1])).loss.backward()
    return calls, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_gradients_are_the_same(attention: str, frozen: bool):
    config = CodaConfig(reduction=2, attention=attention, stand_in=4, key_value_rank=4 * (attention == "k_to_all"))
    models = [tiny_coda("mpnet", config).train() for _ in "ab"]
    if frozen:
        for model in models:
            model.freeze_backbone()
    assert not models[1].is_gradient_checkpointing
    models[1].gradient_checkpointing_enable()
    assert models[1].is_gradient_checkpointing
    (once, wanted), (twice, given) = map(gradients, models)
    assert (once, twice) == ([1, 1], [2, 2])
    assert wanted.keys() == given.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, rtol=0, atol=0)


def test_it_can_be_switched_off_and_does_nothing_without_training():
    model = tiny_coda("bert").train()
    model.gradient_checkpointing_enable({"preserve_rng_state": True})
    model.gradient_checkpointing_disable()
    assert gradients(model)[0] == [1, 1]
    model.gradient_checkpointing_enable()
    assert gradients(model.eval())[0] == [1, 1]


def test_the_reentrant_form_is_refused():
    with pytest.raises(ConfigError, match="use_reentrant would leave layers behind frozen embeddings untrained"):
        tiny_coda("bert").gradient_checkpointing_enable({"use_reentrant": True})


def test_trainer_switches_it_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    calls = count_calls(model)
    arguments = training_arguments(tmp_path, max_steps=2, gradient_checkpointing=True, disable_tqdm=True)
    trainer = CodaTrainer(model=model, args=arguments, train_dataset=rows(), data_collator=TextCollator(tokenizer, 32))
    trainer.train()
    assert calls == [4, 4]

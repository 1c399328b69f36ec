"""The bypass: where it starts, what teaches it, and that a model with one is saved, compiled and verified."""

from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_backbone, tiny_coda
from tests.models.inputs import ragged
from transformers import TrainingArguments

from coda_compile import compile
from coda_models import CodaConfig, CodaModel, convert, load, save
from coda_models.bypass import BypassTrainer, bypass_loss

WITH = CodaConfig(reduction=1, bypass=6)


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 4])
def test_the_loss_is_the_formulas(family: str, every: int):
    """The mean relative distance, and how far centred scores are from its standardised logarithm, halved; both layers."""
    model, batch = tiny_coda(family, WITH).double(), ragged([23])
    states = model(**batch, output_hidden_states=True).hidden_states
    torch.manual_seed(3)
    first = int(torch.randint(every, ()))
    wanted = 0.0
    for i, layer in enumerate(model.coda_layers()):
        x, y = (states[j][0, first::every] for j in (i, i + 1))
        read = layer.block.read(x)
        guess = x
        for light in (layer.adapter, layer.bypass):
            assert light is not None
            guess = guess + torch.relu(read @ light.down + light.down_bias) @ light.up + light.up_bias
        distance = ((guess - y) ** 2).mean(-1) / y.var()
        assert layer.router is not None
        scores, hard = layer.router(read), distance.log()
        target = 0.5 * (hard - hard.mean()) / hard.std()
        wanted += float(distance.mean() + ((scores - scores.mean() - target) ** 2).mean()) / 2
    torch.manual_seed(3)
    assert float(bypass_loss(model, batch, every)) == pytest.approx(wanted, abs=1e-9)


@torch.no_grad()
def test_padding_has_no_part_in_the_loss():
    model, batch = tiny_coda("bert", WITH).double(), ragged([11, 6])
    before = bypass_loss(model, batch)
    batch["input_ids"][batch["attention_mask"] == 0] += 3
    torch.testing.assert_close(bypass_loss(model, batch), before, rtol=0, atol=1e-12)


def trained(model: CodaModel, folder: Path, steps: int) -> CodaModel:
    batch = ragged([23] * 8, seed=5)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(8)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=0.02,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = BypassTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return model


def test_training_leaves_the_dense_model_alone_and_brings_routed_ones_nearer(tmp_path: Path):
    model = tiny_coda("bert", WITH)
    batch, before = ragged([23] * 8, seed=5), {k: v.clone() for k, v in model.state_dict().items()}

    def distance() -> float:
        with torch.no_grad():
            model.set_reduction(1)
            dense = model(**batch, output_hidden_states=True).hidden_states[-1]
            model.set_reduction(4)
            routed = model(**batch, output_hidden_states=True).hidden_states[-1]
            model.set_reduction(1)
        return float((dense - routed).square().mean())

    far = distance()
    trained(model, tmp_path, 60)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(".bypass." in name or ".router." in name for name in changed)
    assert len(changed) == 2 * (4 + 1)
    assert distance() < 0.7 * far
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(model.trainable_names())


def test_a_fresh_bypass_changes_nothing():
    plain = convert(tiny_backbone("bert"), CodaConfig(reduction=2))
    wide = convert(tiny_backbone("bert"), CodaConfig(reduction=2, bypass=6))
    wide.load_state_dict(plain.state_dict(), strict=False)
    batch = ragged([13, 6])
    torch.testing.assert_close(wide(**batch).logits, plain(**batch).logits)
    assert {name.split(".")[3] for name in wide.trainable_names() if ".bypass." in name} == {
        "down",
        "down_bias",
        "up",
        "up_bias",
    }


def test_layers_that_never_route_have_none():
    model = convert(tiny_backbone("bert"), CodaConfig(reduction=2, bypass=6, routed_layers=[1]))
    assert [layer.bypass is None for layer in model.coda_layers()] == [True, False]


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
def test_a_model_with_bypasses_is_saved_compiled_and_verified(family: str, attention: str, tmp_path: Path):
    save(tiny_coda(family, CodaConfig(reduction=2, attention=attention, bypass=6)), tmp_path / "model.pt")
    bundle = compile(load(tmp_path / "model.pt").model, output=tmp_path / "bundle")
    assert [layer.bypass for layer in bundle.manifest.layers] == [6, 6]

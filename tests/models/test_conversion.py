"""A converted model before training is the Hugging Face model itself; what conversion refuses."""

import re

import pytest
import torch
from tests.conftest import tiny_backbone
from tests.models.inputs import ragged

from coda_models import CodaConfig, convert
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_ops.errors import OptionError

TASKS = ("sequence-classification", "token-classification", "feature-extraction")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bottleneck", [64, 0])
def test_before_training_it_computes_what_the_backbone_does(family, task, bottleneck):
    backbone = tiny_backbone(family, task).double()
    batch = ragged([23, 1, 12, 17])
    with torch.no_grad():
        wanted = backbone(**batch)
        model = convert(backbone, CodaConfig(reduction=1, task=task, bottleneck=bottleneck)).double()
        output = model(**batch)
    valid = batch["attention_mask"].bool()
    if task == "sequence-classification":
        torch.testing.assert_close(output.logits, wanted.logits, rtol=0, atol=1e-10)
    elif task == "token-classification":
        torch.testing.assert_close(output.logits[valid], wanted.logits[valid], rtol=0, atol=1e-10)
    else:
        states = wanted.last_hidden_state
        torch.testing.assert_close(output.last_hidden_state[valid], states[valid], rtol=0, atol=1e-10)
        for row, n in enumerate(batch["attention_mask"].sum(1).tolist()):
            torch.testing.assert_close(output.sentence_embedding[row], states[row, :n].mean(0), rtol=0, atol=1e-10)


def test_first_pooling_is_the_backbones_first_token(family):
    backbone = tiny_backbone(family, "feature-extraction").double()
    batch = ragged([9, 4])
    with torch.no_grad():
        wanted = backbone(**batch).last_hidden_state[:, 0]
        config = CodaConfig(reduction=1, task="feature-extraction", pooling="first")
        output = convert(backbone, config).double()(**batch)
    torch.testing.assert_close(output.sentence_embedding, wanted, rtol=0, atol=1e-10)


def test_the_loss_is_the_backbones(family):
    backbone = tiny_backbone(family).double()
    batch = {**ragged([9, 4]), "labels": torch.tensor([2, 1])}
    with torch.no_grad():
        wanted = backbone(**batch).loss
        model = convert(backbone, CodaConfig(reduction=1)).double()
        # the loss is taken in float32, whatever the model's precision
        torch.testing.assert_close(model(**batch).loss.double(), wanted, rtol=0, atol=1e-6)


def test_routing_changes_what_it_computes(family):
    """Or the equalities above would hold of a model that ignores r."""
    batch = ragged([23, 12])
    with torch.no_grad():
        dense = convert(tiny_backbone(family), CodaConfig(reduction=1))(**batch).logits
        routed = convert(tiny_backbone(family), CodaConfig(reduction=4))(**batch).logits
    assert (dense - routed).abs().max() > 1e-3


def test_the_backbone_s_own_modules_are_used(family):
    backbone = tiny_backbone(family)
    own = {id(parameter) for parameter in backbone.parameters()}
    model = convert(backbone, CodaConfig())
    foreign = [name for name, p in model.named_parameters() if id(p) not in own]
    assert foreign
    split = (".attention.query.", ".attention.key.", ".attention.value.") if family == "modernbert" else ()
    assert all(any(part in name for part in (".adapter.", ".router.", *split)) for name in foreign)


def test_without_a_bottleneck_there_are_no_adapters_and_no_routers(family):
    model = convert(tiny_backbone(family), CodaConfig(bottleneck=0, reduction=1))
    assert not any(".adapter." in name or ".router." in name for name in model.state_dict())


def test_the_digest_is_recorded_and_checked(family):
    config = convert(tiny_backbone(family), CodaConfig(backbone="tiny")).coda_config
    assert re.fullmatch("[0-9a-f]{64}", config.backbone_sha256)
    assert convert(tiny_backbone(family), config).coda_config == config
    with pytest.raises(OptionError, match=r"given has SHA-256 .* but the checkpoint was trained on 'tiny', "):
        convert(tiny_backbone(family, seed=1), config)


@pytest.mark.parametrize("config", [CodaConfig(reduction=[4, 4, 4]), CodaConfig(routed_layers=[2])])
def test_a_configuration_for_other_layers_is_refused(config):
    with pytest.raises(ConfigError, match=r"the model"):
        convert(tiny_backbone("bert"), config)


def test_an_unknown_family_is_refused_and_the_known_ones_named():
    backbone = tiny_backbone("bert")
    backbone.config.model_type = "gpt2"
    with pytest.raises(UnsupportedModelError, match=r"'gpt2' is not supported: use one of bert, roberta"):
        convert(backbone, CodaConfig())


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "roberta-prelayernorm"])
def test_a_decoder_is_refused(kind):
    backbone = tiny_backbone(kind)
    backbone.config.is_decoder = True
    with pytest.raises(UnsupportedModelError, match=r"is a decoder"):
        convert(backbone, CodaConfig())


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "roberta-prelayernorm"])
def test_relative_key_positions_are_refused(kind):
    backbone = tiny_backbone(kind)
    backbone.config.position_embedding_type = "relative_key"
    with pytest.raises(UnsupportedModelError, match=r"'relative_key' of .* is not supported"):
        convert(backbone, CodaConfig())

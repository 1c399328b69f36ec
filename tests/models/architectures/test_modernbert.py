"""ModernBERT beside transformers' own: windows, scaled positions, heads of both poolings, and what is refused."""

from typing import Any

import pytest
import torch
from tests.conftest import TINY, WORDS
from tests.models.inputs import ragged
from transformers import AutoConfig, PreTrainedModel

from coda_models import CodaConfig, CodaModel, convert
from coda_models.backbone import build_backbone
from coda_models.errors import ConfigError, UnsupportedModelError

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def backbone(task: str = "feature-extraction", **settings: Any) -> PreTrainedModel:
    """Random weights, in float64."""
    sizes = {**TINY["modernbert"], "num_hidden_layers": 4, "max_position_embeddings": 66, **settings}
    config = AutoConfig.for_model("modernbert", vocab_size=len(WORDS), pad_token_id=0, num_labels=3, **sizes)
    torch.manual_seed(0)
    model = build_backbone(config, task).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model


def dense(model: PreTrainedModel, task: str = "feature-extraction", **settings: Any) -> CodaModel:
    return convert(model, CodaConfig(reduction=1, task=task, **settings)).double()


@pytest.mark.parametrize(
    "settings",
    [
        {"local_attention": 2},  # a token and its neighbours
        {"local_attention": 128},  # longer than any text
        {"global_attn_every_n_layers": 1},
        {"rope_scaling": YARN},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"local_rope_theta": None},
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
        {"hidden_activation": "silu"},
        {"reference_compile": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_settings(settings: dict[str, Any]):
    model, batch = backbone(**settings), ragged([66, 1, 31, 9])
    valid = batch["attention_mask"].bool()
    made = dense(model)(**batch).last_hidden_state[valid]  # first, since transformers' own forgets reference_compile
    torch.testing.assert_close(made, model(**batch).last_hidden_state[valid], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_heads_of_both_poolings(pooling: str):
    task, batch = "sequence-classification", ragged([12, 1, 31])
    model = backbone(task, classifier_pooling=pooling)
    wanted = model(**batch).logits
    made = dense(model, task, pooling="first" if pooling == "cls" else "mean")(**batch).logits
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-9)


def test_a_head_of_the_mean_is_given_no_first_token():
    model = backbone("sequence-classification", classifier_pooling="mean")
    with pytest.raises(ConfigError, match=r"modernbert model reads the mean .* use CodaConfig\(pooling='mean'\)"):
        dense(model, "sequence-classification")


@torch.no_grad()
def test_windows_are_of_original_positions():
    """Routed tokens that are neighbours as slots and far apart in the text do not see each other."""
    model = convert(backbone(local_attention=8), CodaConfig(reduction=4, task="feature-extraction")).double()
    layer = list(model.coda_layers())[1]
    x, mask = torch.randn(1, 40, 32, dtype=torch.float64), torch.ones(1, 40, dtype=torch.bool)
    at, used = torch.tensor([[0, 4, 9, 14, 15, 16, 17, 30, 35, 39]]), torch.ones(1, 10, dtype=torch.bool)
    before, _ = layer(x, mask, None, (at, used.double(), used))
    x[0, 4] += 1.0
    after, _ = layer(x, mask, None, (at, used.double(), used))
    assert (before != after).any(-1)[0].nonzero().flatten().tolist() == [0, 4]  # 9 is five away


def test_other_scalings_are_refused_by_name():
    model = backbone(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match="rope_type 'dynamic' of modernbert is not supported: use default,"):
        dense(model)


def test_more_positions_than_a_table_should_have():
    model = backbone(max_position_embeddings=10**9)
    with pytest.raises(UnsupportedModelError, match=r"max_position_embeddings 1000000000 of modernbert is more than"):
        dense(model)


@pytest.mark.parametrize("dropout", [-1, float("nan")])
def test_a_dropout_that_is_no_probability(dropout: float):
    with pytest.raises(UnsupportedModelError, match="attention_dropout .* of modernbert is no probability: write one"):
        dense(backbone(attention_dropout=dropout))


def test_releases_that_keep_positions_elsewhere_are_refused_by_name():
    model = backbone()
    for layer in model.layers:
        del layer.attn.rotary_emb
    with pytest.raises(UnsupportedModelError, match=r"this release of transformers is not supported: install 4\.57"):
        dense(model)


def test_layers_of_a_kind_share_their_tables():
    model = convert(backbone().float(), CodaConfig(task="feature-extraction"))
    tables = [layer.block.attention.rotary for layer in model.coda_layers()]
    assert tables[0].cos is tables[3].cos
    assert tables[1].cos is tables[2].cos
    assert not torch.equal(tables[0].cos, tables[1].cos)

"""Pooling and the modules behind it compute what those of sentence-transformers do, and travel with a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer import modules as theirs
from tests.conftest import example_inputs, tiny_backbone, tiny_coda

from coda_models import CodaConfig, convert, load, save, save_pretrained
from coda_models.errors import ConfigError
from coda_models.sentence import POOLINGS, SentenceModule, build_modules, pool

WORDS = {"first": "cls"}
MODULES = (
    SentenceModule("Dense", 64, 24, bias=True, activation="GELU"),
    SentenceModule("LayerNorm", 24, 24),
    SentenceModule("Normalize"),
    SentenceModule("Truncate", outputs=7),
)
SETTINGS: dict[str, Any] = {"task": "feature-extraction", "pooling": ("lasttoken", "max"), "modules": MODULES}


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_follows_the_mask(pooling: str, side: str):
    torch.manual_seed(0)
    x, mask = torch.randn(4, 9, 5), torch.ones(4, 9, dtype=torch.int64)
    for row in range(1, 4):
        mask[row, 9 - 2 * row :] = 0 if side != "left" else 1
        mask[row, : {"left": 2 * row, "both": row - 1}.get(side, 0)] = 0
    wanted = theirs.Pooling(5, WORDS.get(pooling, pooling))({"token_embeddings": x, "attention_mask": mask})
    torch.testing.assert_close(pool(x, mask.bool(), pooling), wanted["sentence_embedding"])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_stands_for_an_empty_text(pooling: str):
    x, mask = torch.randn(2, 3, 5), torch.tensor([[True, True, False], [False, False, False]])
    assert pool(x, mask, pooling)[1].tolist() == [0.0] * 5


@pytest.mark.parametrize("activation", ["Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU"])
def test_modules(activation: str):
    torch.manual_seed(0)
    dense = theirs.Dense(6, 4, activation_function=getattr(torch.nn, activation)())
    norm = theirs.LayerNorm(4)
    torch.nn.init.normal_(norm.norm.weight)
    about = [SentenceModule("Dense", 6, 4, True, activation), SentenceModule("LayerNorm", 4, 4)]
    built = build_modules([*about, SentenceModule("Normalize")], 6)
    built[0].load_state_dict(dense.state_dict())
    built[1].load_state_dict(norm.state_dict())
    x = torch.randn(3, 6)
    wanted = theirs.Normalize()(norm(dense({"sentence_embedding": x})))["sentence_embedding"]
    torch.testing.assert_close(built(x), wanted)


def lively(config: CodaConfig) -> Any:
    model = tiny_coda("bert", config)
    torch.manual_seed(2)
    for parameter in model.after_pooling.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("kind", ["complete", "delta", "folder"])
def test_checkpoints_keep_the_embedding(tmp_path: Path, kind: str):
    model = lively(CodaConfig(reduction=2, **SETTINGS))
    if kind == "folder":
        save_pretrained(model, tmp_path / "m")
    else:
        save(model, tmp_path / "m", delta=kind == "delta")
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path / "base")
    restored = load(tmp_path / "m", backbone=tmp_path / "base").model
    assert restored.coda_config == model.coda_config
    inputs = example_inputs(model, 2, 9)
    with torch.inference_mode():
        embedding = restored(**inputs).sentence_embedding
        torch.testing.assert_close(embedding, model(**inputs).sentence_embedding, atol=0, rtol=0)
    assert embedding.shape == (2, 7)


def test_first_before_a_head_is_position_0_as_transformers_takes_it():
    model = convert(tiny_backbone("bert"), CodaConfig(reduction=1, bottleneck=0))
    ids, mask = torch.arange(4, 12).view(1, 8), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    with torch.inference_mode():
        wanted = tiny_backbone("bert")(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "median"}, "pooling 'median' is unknown: use one of mean, first, max"),
        ({"pooling": ()}, "pooling .. is neither a name nor a list"),
        ({"pooling": 3}, "pooling 3 is neither a name nor a list"),
        ({"pooling": ["mean", 3]}, "pooling 3 is unknown"),
        ({"modules": "Dense"}, "modules 'Dense' is no list"),
        ({"modules": ["Dense"]}, r"modules \['Dense'\] is no list"),
        ({"modules": [{"kind": "CNN"}]}, "module 'CNN' behind pooling is unknown: use one of Dense"),
        ({"modules": [{"kind": ["Dense"]}]}, "behind pooling is unknown"),
        ({"modules": [{"kind": "Dense", "inputs": 0, "outputs": 3}]}, "inputs 0 of a Dense is not a whole number"),
        ({"modules": [{"kind": "Dense", "inputs": 3, "outputs": True}]}, "outputs True of a Dense is not a whole"),
        ({"modules": [{"kind": "Dense", "inputs": 3, "outputs": 3, "activation": "eval"}]}, "activation 'eval' of a"),
        ({"modules": [{"kind": "Dense", "inputs": 3, "outputs": 3, "bias": "no"}]}, "bias 'no' of a Dense is neither"),
        ({"modules": [{"kind": "Truncate", "outputs": 3}, {"kind": "Normalize"}]}, "a Truncate is the last"),
        ({"task": "sequence-classification", "modules": [{"kind": "Normalize"}]}, "has no place for a Normalize"),
        ({"task": "sequence-classification", "pooling": ["mean", "max"]}, "has no place for several poolings"),
        ({"task": "token-classification", "pooling": "max"}, "pooling 'max' leaves no tokens to classify"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        CodaConfig(**{"task": "feature-extraction", **changes})


def test_unknown_field_of_a_module():
    with pytest.raises(ConfigError, match="a configuration field has the wrong type"):
        CodaConfig.from_dict({"task": "feature-extraction", "modules": [{"kind": "Dense", "code": "x"}]})


def test_width_that_does_not_fit():
    config = CodaConfig(task="feature-extraction", modules=[SentenceModule("Dense", 33, 8)])
    with pytest.raises(ConfigError, match="a Dense behind pooling takes width 33 where embeddings have 32"):
        convert(tiny_backbone("bert", "feature-extraction"), config)

"""Plain folders compute what transformers' own pipelines do, whatever their configuration sets, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import TINY, WORDS
from tests.json_files import edit
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from coda_compile import compile
from coda_compile.errors import CompileError
from coda_compile.sources import read_source
from coda_models.errors import UnsupportedModelError

AUTO = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "feature-extraction": AutoModel,
}


def saved(folder: Path, family: str, task: str = "sequence-classification", **settings: Any) -> PreTrainedModel:
    """A model of transformers' own with random weights, in a folder."""
    fixed = {"vocab_size": len(WORDS), "max_position_embeddings": 66, "pad_token_id": 0, "num_labels": 3}
    torch.manual_seed(0)
    model = AUTO[task].from_config(AutoConfig.for_model(family, **{**fixed, **TINY[family], **settings}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    model.eval().save_pretrained(folder)
    return model


def same(folder: Path, eager: PreTrainedModel) -> None:
    """On texts of different lengths, with two kinds of tokens where the model has them."""
    read = read_source(folder).model
    ids = 4 + torch.arange(3 * 17).reshape(3, 17) * 7 % 90
    mask = torch.ones_like(ids)
    mask[1, 9:], mask[2, 4:] = 0, 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if "token_type_ids" in read.signature.names:
        inputs["token_type_ids"] = (torch.arange(17) > 2).long() * mask
    with torch.inference_mode():
        wanted, seen = eager(**inputs), read(**inputs)
    key = "logits" if "logits" in wanted else "last_hidden_state"
    valid = mask.bool() if wanted[key].dim() == 3 else ...
    torch.testing.assert_close(seen[key][valid], wanted[key][valid], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", list(AUTO))
def test_what_is_read_computes_what_transformers_does(tmp_path: Path, family: str, task: str):
    same(tmp_path, saved(tmp_path, family, task))


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "another activation": ("bert", {"hidden_act": "gelu_new"}),
    "another epsilon": ("roberta", {"layer_norm_eps": 1e-2}),
    "DistilBERT's activation": ("distilbert", {"activation": "relu"}),
    "ELECTRA's embeddings as wide as its layers": ("electra", {"embedding_size": 32}),
    "a head of the mean": ("modernbert", {"classifier_pooling": "mean"}),
    "YaRN": (
        "modernbert",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "sinusoidal positions": ("distilbert", {"sinusoidal_pos_embds": True}),
    "more buckets than transformers looks into": ("mpnet", {"relative_attention_num_buckets": 64}),
    "padding elsewhere": ("roberta", {"pad_token_id": 5}),
    "one kind of token": ("bert", {"type_vocab_size": 1}),
    "three kinds of tokens": ("bert", {"type_vocab_size": 3}),
    "tuples": ("bert", {"torchscript": True}),
    "an encoder of others": ("bert", {"is_encoder_decoder": True}),
}


@pytest.mark.filterwarnings("ignore:.*torchscript")
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_settings(tmp_path: Path, setting: str):
    family, changes = SETTINGS[setting]
    eager = saved(tmp_path, family, **changes)
    eager.config.torchscript = False
    same(tmp_path, eager)


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "roberta-prelayernorm"])
@pytest.mark.parametrize("rows", [1, 2])
def test_token_types_are_an_input_where_there_are_several(tmp_path: Path, family: str, rows: int):
    eager = saved(tmp_path / "model", family, type_vocab_size=rows)
    bundle = compile(tmp_path / "model", output=tmp_path / "bundle")
    names = list(bundle.manifest.signature.names)
    assert names == ["input_ids", "attention_mask", "token_type_ids"][: 1 + rows]
    inputs = {"input_ids": 4 + np.arange(20).reshape(2, 10), "attention_mask": np.ones((2, 10), np.int64)}
    if rows > 1:
        inputs["token_type_ids"] = np.repeat([[0, 1]], 5, 1) * np.ones((2, 1), np.int64)
    with torch.inference_mode():
        wanted = eager(**{name: torch.as_tensor(array) for name, array in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(bundle.run(inputs)["logits"], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("bert", "DeepForSequenceClassification"),
        ("bert", "BertAdapterModel"),
        ("bert", "RobertaForSequenceClassification"),
        ("roberta", "MyRobertaForTokenClassification"),
        ("mpnet", "BertForMaskedLM"),
    ],
)
def test_classes_that_are_not_transformers_own(tmp_path: Path, family: str, architecture: str):
    saved(tmp_path, family)
    edit(tmp_path / "config.json", architectures=[architecture])
    with pytest.raises(UnsupportedModelError, match=f"^{architecture} in .* is no class of transformers' own, so what"):
        read_source(tmp_path)


def test_a_class_of_a_model_type_that_is_built_alike(tmp_path: Path):
    eager = saved(tmp_path, "roberta")
    edit(tmp_path / "config.json", model_type="xlm-roberta")
    same(tmp_path, eager)


def test_what_transformers_itself_cannot_run(tmp_path: Path):
    saved(tmp_path, "mpnet", relative_attention_num_buckets=16)
    with pytest.raises(UnsupportedModelError, match="^transformers itself cannot run this model, so there is nothing"):
        read_source(tmp_path)


def test_a_model_that_would_compute_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MPNet's attention is transformers' own product by product, so the one that ours calls can be changed alone."""
    saved(tmp_path, "mpnet")
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "coda_models.layers.attention.F.scaled_dot_product_attention",
        lambda q, *rest, **more: attention(2 * q, *rest, **more),
    )
    with pytest.raises(CompileError, match="would not compute what transformers does"):
        read_source(tmp_path)

"""A bundle is a folder that optimum and transformers load as it is, and they agree with our own few lines."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import (
    ORTModelForFeatureExtraction,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)
from tests.conftest import tiny_backbone, tiny_coda
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

from coda_compile import compile
from coda_models import CodaConfig
from coda_targets import Bundle
from coda_targets.modalities.text import TextCodec

TEXTS = ["good film", "bad plot w1 w2 w3 w4 w5", "w9 " * 200]


def own(bundle: Bundle) -> list[dict[str, Any]]:
    """What our own loader makes of the texts, each alone, as pipelines run them."""
    codec = TextCodec(bundle)
    encoded = [codec.encode([text]) for text in TEXTS]
    return [codec.decode(bundle.run(e.inputs), e)[0] for e in encoded]


@pytest.mark.parametrize("name", ["pipeline", "model"])
def test_sequence_classification(compiled: Bundle, name: str):
    model = ORTModelForSequenceClassification.from_pretrained(compiled.folder)
    tokenizer = AutoTokenizer.from_pretrained(compiled.folder)
    expected = own(compiled)
    if name == "pipeline":
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
        for got, wanted in zip(classify(TEXTS, truncation=True), expected, strict=True):
            assert got == {"label": wanted["label"], "score": pytest.approx(wanted["score"], abs=1e-5)}
        return
    logits = model(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    for row, wanted in zip(logits.softmax(-1), expected, strict=True):
        assert model.config.id2label[int(row.argmax())] == wanted["label"]
        assert float(row.max()) == pytest.approx(wanted["score"], abs=1e-5)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Bundle:
    model = tiny_coda(request.param, CodaConfig(reduction=2, task="token-classification"))
    return compile(model, output=tmp_path_factory.mktemp("tokens") / "b", tokenizer=tokenizer)


def test_token_classification(tokens: Bundle):
    model = ORTModelForTokenClassification.from_pretrained(tokens.folder)
    label = pipeline("token-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(tokens.folder))
    for text, wanted in zip(TEXTS[:2], own(tokens)[:2], strict=True):
        got = label(text)
        assert [(x["word"], x["entity"]) for x in got] == [(x["token"], x["label"]) for x in wanted["tokens"]]
        assert [float(x["score"]) for x in got] == pytest.approx([x["score"] for x in wanted["tokens"]], abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_feature_extraction(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, pooling: str):
    model = tiny_coda("mpnet", CodaConfig(reduction=2, task="feature-extraction", pooling=pooling))
    bundle = compile(model, output=tmp_path / "b", tokenizer=tokenizer)
    loaded = ORTModelForFeatureExtraction.from_pretrained(bundle.folder)
    words = AutoTokenizer.from_pretrained(bundle.folder)
    for text, wanted in zip(TEXTS, own(bundle), strict=True):
        hidden = loaded(**words(text, truncation=True, return_tensors="pt")).last_hidden_state.numpy()[0]
        pooled = hidden.mean(0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(pooled, wanted["embedding"], atol=1e-4)


def test_tokenizers_agree(compiled: Bundle, tokenizer: PreTrainedTokenizerFast):
    loaded = AutoTokenizer.from_pretrained(compiled.folder)
    assert loaded.model_max_length == compiled.manifest.signature.max_length
    inputs = loaded(TEXTS, padding=True, truncation=True, return_tensors="np")
    for name, array in TextCodec(compiled).encode(TEXTS).inputs.items():
        np.testing.assert_array_equal(array, inputs[name])


def test_a_folder_that_optimum_exported_compiles(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_backbone("bert")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's older exporter, which optimum uses
        main_export(str(tmp_path / "model"), tmp_path / "exported", task="text-classification")
    bundle = compile(tmp_path / "exported", output=tmp_path / "bundle")
    encoded = TextCodec(bundle).encode(TEXTS)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in encoded.inputs.items()}).logits
    np.testing.assert_allclose(bundle.run(encoded.inputs)["logits"], expected.numpy(), atol=1e-5)

"""Predictions for texts, and the words behind routed tokens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.inspect.predict import predict
from coda_models import CodaConfig
from coda_targets import Bundle

TEXTS = ["good film", "bad w1 w2 w3 w4 w5 w6", "plot", "w9 w8"]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_results_do_not_depend_on_the_batch(compiled: Bundle, batch: int):
    alone = [record for _, record, _ in predict(compiled, TEXTS, batch=1)]
    for (text, record, routed), own, wanted in zip(predict(compiled, TEXTS, batch=batch), alone, TEXTS, strict=True):
        assert (text, routed) == (wanted, None)
        assert record["label"] == own["label"]
        assert record["score"] == pytest.approx(own["score"], abs=1e-5)


def test_routing_does_not_change_results(compiled: Bundle):
    plain = list(predict(compiled, TEXTS))
    for (_, record, routed), (_, own, _) in zip(predict(compiled, TEXTS, routing=True), plain, strict=True):
        assert record["label"] == own["label"]
        assert record["score"] == pytest.approx(own["score"], abs=1e-6)
        assert routed is not None


def test_words_and_layers(compiled: Bundle):
    ((_, _, routed),) = predict(compiled, ["good film w1 w2"], routing=True)
    assert routed is not None
    assert routed.words == ["good", "film", "w1", "w2"]
    assert [layer for layer, _ in routed.layers] == [0, 1]
    # Six tokens with [CLS] and [SEP], three routed: at most three of the words, at least one.
    assert all(1 <= sum(flags) <= 3 and len(flags) == 4 for _, flags in routed.layers)


def test_padding_is_not_a_word(compiled: Bundle):
    short, _ = (routed for _, _, routed in predict(compiled, ["good", "w1 w2 w3 w4"], routing=True))
    assert short is not None
    assert short.words == ["good"]


def test_texts_are_read_as_they_are_needed(compiled: Bundle):
    read: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    next(predict(compiled, texts(), batch=2))
    assert read == TEXTS[:2]


def test_no_texts(compiled: Bundle):
    assert list(predict(compiled, [])) == []


def test_labels_for_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("distilbert", CodaConfig(reduction=2, task="token-classification"))
    bundle = compile(model, CompileOptions(tokenizer=tokenizer), output=tmp_path / "b")
    (_, long, _), (_, short, _) = predict(bundle, ["good film w1", "bad"])
    assert [token["token"] for token in long["tokens"]] == ["good", "film", "w1"]
    assert [token["token"] for token in short["tokens"]] == ["bad"]
    for token in long["tokens"]:
        assert token["label"].startswith("LABEL_")
        assert 1 / 3 <= token["score"] <= 1


def test_embeddings(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=2, task="feature-extraction"))
    bundle = compile(model, CompileOptions(tokenizer=tokenizer), output=tmp_path / "b")
    (_, record, _), _ = predict(bundle, ["good film w1", "bad"])
    assert len(record["embedding"]) == 32
    ((_, alone, _),) = predict(bundle, ["good film w1"])
    assert alone["embedding"] == pytest.approx(record["embedding"], abs=1e-5)

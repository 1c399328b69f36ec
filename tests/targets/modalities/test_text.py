"""Text in, labels out."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.targets.test_manifest import SIGNATURE, edit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from coda_targets import Bundle, BundleError, TargetError
from coda_targets.modalities.text import TextCodec, softmax


def test_softmax():
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 1000.0], [-1000.0, 1000.0]])
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(softmax(np.random.default_rng(0).normal(size=(2, 3, 5)) * 30).sum(-1), 1.0)


def test_encodes_as_the_tokenizer_does(compiled: Bundle, tokenizer: PreTrainedTokenizerFast):
    texts = ["good film", "bad plot w1 w2 w3", "unheard of"]
    encoded = TextCodec(compiled).encode(texts)
    expected = tokenizer(texts, padding=True, return_tensors="np")
    assert list(encoded.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    for name, array in encoded.inputs.items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("named", ["absent", None])
def test_input_names_that_are_not_said(copied: Path, named: str | None):
    path = copied / "tokenizer_config.json"
    plain = json.loads(path.read_text())
    del plain["model_input_names"]
    path.write_text(json.dumps(plain))
    wanted = AutoTokenizer.from_pretrained(copied)("good film", "bad plot", return_tensors="np")
    if named is None:
        path.write_text(json.dumps({**plain, "model_input_names": None}))
    found = TextCodec(Bundle(copied)).encode([("good film", "bad plot")]).inputs
    assert wanted["token_type_ids"].any()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_truncates_to_the_longest_input(compiled: Bundle):
    longest = compiled.manifest.signature.max_length
    codec = TextCodec(compiled)
    encoded = codec.encode(["w1 " * 500, "good"])
    assert encoded.inputs["input_ids"].shape == (2, longest)
    assert encoded.inputs["input_ids"][0, -1] == 3  # [SEP] survives
    assert compiled.run(encoded.inputs)["logits"].shape == (2, 3)
    assert codec.encode(["w1 " * (longest - 2)]).inputs["input_ids"].shape == (1, longest)


def test_labels_and_probabilities(compiled: Bundle):
    codec = TextCodec(compiled)
    encoded = codec.encode(["good film", "bad"])
    logits = np.array([[0.0, 0.0, np.log(2.0)], [5.0, 0.0, 0.0]], np.float32)
    first, second = codec.decode({"logits": logits}, encoded)
    assert first == {"label": "LABEL_2", "score": pytest.approx(0.5)}
    assert second["label"] == "LABEL_0"
    json.dumps([first, second])


def test_result_does_not_depend_on_the_batch(compiled: Bundle):
    codec = TextCodec(compiled)
    texts = ["good", "bad film w1 w2 w3 w4 w5", "plot w9"]
    together = codec.encode(texts)
    records = codec.decode(compiled.run(together.inputs), together)
    for text, record in zip(texts, records, strict=True):
        alone = codec.encode([text])
        (single,) = codec.decode(compiled.run(alone.inputs), alone)
        assert single["label"] == record["label"]
        assert single["score"] == pytest.approx(record["score"], abs=1e-5)


def test_empty_text_still_has_its_special_tokens(compiled: Bundle):
    encoded = TextCodec(compiled).encode([""])
    assert encoded.inputs["input_ids"].tolist() == [[2, 3]]


def test_bundle_without_a_tokenizer(copied: Path):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"holds no tokenizer: feed token ids through Bundle\.run, or compile with"):
        TextCodec(Bundle(copied))


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"\xff\xfe\x00", b'{"version": "1.0", "model": {"type": "X"}}'])
def test_damaged_tokenizer(copied: Path, content: bytes):
    (copied / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged: ") as caught:
        TextCodec(Bundle(copied))
    assert "\n" not in str(caught.value)


def test_tokenizers_library_absent(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TargetError, match=r"pip install tokenizers"):
        TextCodec(compiled)


def test_labels_that_are_not_as_many_as_the_logits(copied: Path):
    edit(copied, labels=["a", "b"])
    codec = TextCodec(Bundle(copied))
    encoded = codec.encode(["good"])
    with pytest.raises(
        BundleError, match="the model tells 3 labels apart and coda.json names 2: compile the model again"
    ):
        codec.decode(Bundle(copied).run(encoded.inputs), encoded)


def test_an_input_that_no_tokenizer_gives(copied: Path):
    inputs = [{**one, "name": one["name"].replace("token_type", "segment")} for one in SIGNATURE["inputs"]]
    edit(copied, signature={**SIGNATURE, "inputs": inputs})
    with pytest.raises(BundleError, match="takes 'segment_ids', which no tokenizer gives: compile the model again"):
        TextCodec(Bundle(copied))

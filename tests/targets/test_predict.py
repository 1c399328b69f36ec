"""Bundle.predict: texts in, records out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.contracts.test_structure import loaded_by
from transformers import PreTrainedTokenizerFast

from coda_targets import Bundle
from coda_targets.errors import BundleError, InputError
from coda_targets.modalities.text import scores

TEXTS = ["good film", "bad w1 w2 w3 w4 w5 w6", "plot"]


def test_records_are_of_the_logits_in_order(compiled: Bundle, tokenizer: PreTrainedTokenizerFast):
    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="np"))
    wanted = scores(compiled.run(inputs)["logits"], "softmax")
    records = compiled.predict(TEXTS)
    assert [record["label"] for record in records] == [f"LABEL_{i}" for i in wanted.argmax(-1)]
    np.testing.assert_allclose([record["score"] for record in records], wanted.max(-1), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_batches_do_not_matter(compiled: Bundle, batch: int):
    records, whole_batch = compiled.predict(TEXTS, batch=batch), compiled.predict(TEXTS)
    for record, other in zip(records, whole_batch, strict=True):
        assert record["label"] == other["label"]
        assert record["score"] == pytest.approx(other["score"], abs=1e-5)


def test_pairs_numpy_strings_and_nothing(compiled: Bundle):
    assert compiled.predict([]) == []
    assert compiled.predict(np.array(TEXTS)) == compiled.predict(TEXTS)
    assert compiled.predict([("good", "film")]) != compiled.predict(["good film"])


def test_raw_logits(compiled: Bundle):
    (record,) = compiled.predict(["good film"], raw=True)
    assert [one["label"] for one in record["logits"]] == list(compiled.manifest.labels)


def test_the_tokenizer_is_read_once(copied: Path):
    bundle = Bundle(copied)
    first = bundle.predict(TEXTS)
    (copied / "tokenizer.json").unlink()
    assert bundle.predict(TEXTS) == first
    with pytest.raises(BundleError, match="holds no tokenizer"):
        Bundle(copied).predict(TEXTS)


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ("good film", "predict takes several texts, and was given one string: put it into a list"),
        ([1], "1 is no text: give a string, or a tuple of two strings for a pair"),
        ([None], "None is no text: give a string"),
        ([b"good"], "b'good' is no text"),
        ([["good", "film"]], r"\['good', 'film'\] is no text"),
        ([("a", "b", "c")], r"\('a', 'b', 'c'\) is no text"),
        ([("a", 1)], r"\('a', 1\) is no text"),
        (["\udce9"], "holds a lone surrogate, which no UTF-8 has: decode it anew"),
    ],
)
def test_what_is_no_text(compiled: Bundle, items: Any, sentence: str):
    with pytest.raises(InputError, match=sentence):
        compiled.predict(items)


def test_batches_hold_something(compiled: Bundle):
    with pytest.raises(InputError, match="batch is 0: give 1 or more"):
        compiled.predict(TEXTS, batch=0)


def test_unknown_tasks(compiled: Bundle):
    with pytest.raises(InputError, match="task 'other' is unknown: this bundle has but one"):
        compiled.predict(TEXTS, task="other")


def test_it_needs_onnxruntime_numpy_and_tokenizers_alone(compiled: Bundle):
    code = f"from coda_targets import Bundle; Bundle({str(compiled.folder)!r}).predict(['good film'])"
    heavy = ("torch", "transformers", "onnx", "onnx_ir", "rich", "click", "coda_compile", "coda_models")
    light = ("numpy", "onnxruntime", "tokenizers")
    assert loaded_by(code, *heavy, *light) == sorted(light)


def test_the_example_prints_records(compiled: Bundle):
    import subprocess
    import sys

    example = Path(__file__).parents[2] / "examples" / "embed_python.py"
    command = [sys.executable, str(example), str(compiled.folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [set(eval(line)) for line in lines] == [{"label", "score"}] * 2

"""Accuracy on a CSV file: counted right, and every bad file told in one sentence."""

from pathlib import Path

import pytest
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import compile
from coda_compile.accuracy import Accuracy, measure, read_rows, wilson
from coda_compile.errors import CodaError
from coda_compile.predict import predict
from coda_models import CodaConfig
from coda_targets import Bundle

LABELS = ("neg", "pos")


def csv(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_right_ones_are_counted(compiled: Bundle, tmp_path: Path):
    texts = ["good film", "bad plot", "w1 w2 w3", "good"]
    said = [record["label"] for _, record, _ in predict(compiled, texts)]
    other = next(label for label in compiled.manifest.labels if label != said[0])
    rows = "\n".join(f"{text},{label}" for text, label in zip(texts, [other, *said[1:]], strict=True))
    found = measure(compiled, csv(tmp_path, f"text,label\n{rows}\n"))
    assert found.texts == 4
    assert found.share.middle == 0.75
    assert found.confusion[other, said[0]] == 1
    assert found.name == "data.csv"


def test_wilson_interval():
    interval = wilson(81, 100)
    assert (interval.middle, round(interval.low, 3), round(interval.high, 3)) == (0.81, 0.722, 0.875)
    assert wilson(0, 4).low == 0
    assert wilson(4, 4).high == 1


def test_share_of_none_right():
    assert Accuracy("x", LABELS, {("neg", "pos"): 3}).share.middle == 0


@pytest.mark.parametrize("text", ["text,label\nfine,pos\n", "\ufefflabel,other,text\n1,x,fine\n"])
def test_columns_may_stand_anywhere_and_labels_may_be_numbers(text: str, tmp_path: Path):
    assert list(read_rows(csv(tmp_path, text), LABELS)) == [("fine", "pos")]


def test_quoted_texts_keep_their_lines(tmp_path: Path):
    assert list(read_rows(csv(tmp_path, 'text,label\n"a, b\nc",neg\n'), LABELS)) == [("a, b\nc", "neg")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'label'"),
        ("text,class\na,pos\n", "has no column 'label'"),
        ("label\npos\n", "has no column 'text'"),
        ("text,label\n", "has no rows"),
        ("text,label\na,pos\nb,maybe\n", "line 3 of .* has the label 'maybe': this model knows neg, pos"),
        ("text,label\na,2\n", "has the label '2'"),
        ("text,label\na\n", "has the label ''"),
        (b"text,label\n\xff\xfe,pos\n", "is not UTF-8"),
        ("text,label\n" + "a" * 200_000 + ",pos\n", "is no CSV file: field larger"),
    ],
)
def test_bad_files(text: str | bytes, message: str, tmp_path: Path):
    with pytest.raises(CodaError, match=message):
        list(read_rows(csv(tmp_path, text), LABELS))


def test_no_file(tmp_path: Path):
    with pytest.raises(CodaError, match="does not exist"):
        list(read_rows(tmp_path / "none.csv", LABELS))


def test_only_text_classifiers_have_an_accuracy(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2, task="feature-extraction"))
    bundle = compile(model, output=tmp_path / "bundle", tokenizer=tokenizer)
    with pytest.raises(CodaError, match="this model does feature-extraction"):
        measure(bundle, csv(tmp_path, "text,label\na,pos\n"))

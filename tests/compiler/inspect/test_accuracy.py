"""Accuracy on a CSV file: counted right, and every bad file told in one sentence."""

from pathlib import Path

import pytest
from tests.compiler.prepare.test_fit_ood import some_texts
from tests.compiler.test_logits import model_of, of_pipeline, saved
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.errors import CodaError
from coda_compile.inspect.accuracy import Accuracy, measure, wilson
from coda_compile.inspect.evaluate import evaluate
from coda_compile.inspect.predict import predict
from coda_compile.sources import read_source
from coda_compile.text_files import read_rows
from coda_compile.tune.choice import choose
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
    assert read_rows(csv(tmp_path, text), LABELS) == [("fine", "pos")]


def test_quoted_texts_keep_their_lines(tmp_path: Path):
    assert read_rows(csv(tmp_path, 'text,label\n"a, b\nc",neg\n'), LABELS) == [("a, b\nc", "neg")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'label'"),
        ("text,class\na,pos\n", "has no column 'label'"),
        ("label\npos\n", "has no column 'text'"),
        ("text,label\n", "has no rows"),
        ("text,label\na,pos\nb,maybe\n", "line 3 of .* has the label 'maybe': this model knows neg, pos"),
        ("text,label\na,2\n", "has the label '2'"),
        ("text,label\na\n", "line 2 of .* has fewer cells than the header"),
        (b"text,label\n\xff\xfe,pos\n", "is not UTF-8"),
        ('text,label\na,pos\n"b', "cannot be read as CSV: unexpected end of data"),
    ],
)
def test_bad_files(text: str | bytes, message: str, tmp_path: Path):
    with pytest.raises(CodaError, match=message):
        read_rows(csv(tmp_path, text), LABELS)


def test_no_file(tmp_path: Path):
    with pytest.raises(CodaError, match="does not exist"):
        read_rows(tmp_path / "none.csv", LABELS)


def test_only_text_classifiers_have_an_accuracy(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2, task="feature-extraction"))
    bundle = compile(model, CompileOptions(tokenizer=tokenizer), output=tmp_path / "bundle")
    with pytest.raises(CodaError, match="this model does feature-extraction"):
        measure(bundle, csv(tmp_path, "text,label\na,pos\n"))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (
            None,
            1,
            "^--data measures the accuracy of models that choose among labels, and this one has num_labels = 1: ",
        ),
        (
            "multi_label_classification",
            3,
            "'single_label_classification', and this model's is 'multi_label_classificati",
        ),
        ("regression", 2, "problem_type 'single_label_classification', and this model's is 'regression'$"),
    ],
)
def test_only_one_label_of_several_is_right_or_wrong(
    kind: str | None, labels: int, message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    folder = saved(tmp_path / "model", model_of(num_labels=labels, problem_type=kind), tokenizer)
    bundle = compile(folder, output=tmp_path / "bundle")
    path = csv(tmp_path, "text,label\na,LABEL_0\n")
    with pytest.raises(CodaError, match=message):
        measure(bundle, path)
    with pytest.raises(CodaError, match=message):
        evaluate(bundle, path)
    with pytest.raises(CodaError, match=message):
        choose(
            read_source(folder).model,
            CompileOptions(tokenizer=tokenizer),
            data=path,
            budget=1,
            output=tmp_path / "chosen",
        )


def test_pairs_are_labelled_as_the_pipeline_does(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    folder = saved(tmp_path / "model", model_of(num_labels=3), tokenizer)
    pairs = list(zip(some_texts(30), some_texts(30, seed=1), strict=True))
    said = [labels[0]["label"] for labels in of_pipeline(folder, list(pairs))]
    alone = [labels[0]["label"] for labels in of_pipeline(folder, [first for first, _ in pairs])]
    assert said != alone
    rows = "".join(f"{first},{second},{label}\n" for (first, second), label in zip(pairs, said, strict=True))
    bundle = compile(folder, output=tmp_path / "bundle")
    path = csv(tmp_path, f"text,text_pair,label\n{rows}")
    assert measure(bundle, path).share.middle == 1
    (ours, theirs) = evaluate(bundle, path, original=read_source(folder))
    assert ours.accuracy == theirs.accuracy == theirs.same == 1

"""Training from the command line: a checkpoint, figures and the next command; or one sentence and nothing."""

import json
import os
import signal
from pathlib import Path

import pytest
from tests.compiler.commands import Call, interrupted
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone
from transformers import PreTrainedTokenizerFast

from coda_models import load
from coda_targets import Bundle

TEXTS = random_texts(60, most=6)
QUICK = ["--epochs", "1", "--bottleneck", "8"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    """A pretrained encoder without a head."""
    folder = tmp_path_factory.mktemp("backbone") / "encoder"
    tiny_backbone("bert", "feature-extraction").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_data(name: str = "texts.csv", label: str = "label") -> str:
    rows = (f"{text},{'bad' if i % 2 else 'good'}\n" for i, text in enumerate(TEXTS))
    Path(name).write_text(f"text,{label}\n" + "".join(rows))
    return name


def test_from_labels_to_a_compiled_bundle(call: Call, backbone: str):
    out = call("train", write_data(), "--backbone", backbone, *QUICK).worked()
    first, heading, linear, dense, *rest = out.splitlines()
    assert first.startswith("12 held-out texts of ")
    assert first.endswith(" tokens at the median, 2 classes, 95 % intervals; trained on 48 others")
    assert heading.split() == ["accuracy", "trained", "in", "file"]
    assert linear.startswith("linear model on words  ")
    assert (dense[:13], dense.split()[-1]) == ("dense adapter", "texts.pt")
    assert rest == [
        "next: coda-compile texts.pt",
        "or:   coda-compile route texts.pt --texts texts.csv  (better on texts that it was not trained on)",
    ]
    call("texts.pt", "-o", "bundle").worked()
    assert Bundle("bundle").manifest.labels == ("bad", "good")
    assert json.loads(call("run", "bundle", "good film").worked())["label"] in ("bad", "good")


def test_a_front_beside_the_dense_adapter(call: Call, backbone: str):
    data = write_data(label="kind")
    options = ["--label-column", "kind", "--rank", "8", "--key-value-rank", "8", "-r", "2", "-r", "2,1", "-o", "x.pt"]
    out = call("train", data, "--backbone", backbone, *QUICK, *options).worked()
    blank = out.splitlines().index("")
    routed = out.splitlines()[blank + 1 :]
    assert routed[0].startswith("12 held-out texts of ")
    assert routed[1].split()[2:5] == ["accuracy", "points", "lost"]
    assert routed[-2:] == ["next: coda-compile x-r2.pt", "next: coda-compile x-r2,1.pt"]
    assert load("x-r2.pt").model.coda_config.stand_in == 8


def test_a_delta_goes_on_with_its_backbone(call: Call, backbone: str):
    out = call("train", write_data(), "--backbone", backbone, *QUICK, "--delta").worked()
    assert out.splitlines()[-2] == f"next: coda-compile texts.pt --backbone {backbone}"
    assert f"coda-compile route texts.pt --texts texts.csv --backbone {backbone}" in out.splitlines()[-1]
    assert Path("texts.pt").stat().st_size < (Path(backbone) / "model.safetensors").stat().st_size
    call("texts.pt", "--backbone", backbone, "-o", "bundle").worked()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv"], "no.csv does not exist: give a file with texts, .csv, .jsonl or a text a line"),
        (["texts.txt"], "texts.txt has no column 'label': give labels in a .csv or .jsonl file"),
        (["other.csv"], "other.csv has no column 'label': give a CSV file with the columns text and label"),
        (
            ["texts.csv", "--label-column", "x"],
            "texts.csv has no column 'x': give a CSV file with the columns text and",
        ),
        (["few.csv"], "few.csv has 2 texts, and training takes 50 or more, better some hundred: give more"),
        (["empty.csv"], "60 of 60 texts in empty.csv are empty: give texts like those that the model will see"),
        (["alike.csv"], "the 60 texts in alike.csv are all the same"),
        (["nan.csv"], "line 61 of nan.csv has no label, but 'nan': write one, or leave the text out"),
        (["single.csv"], "all 60 texts in single.csv have the label 'good': give texts of two classes or more"),
        (
            ["texts.csv", "--problem-type", "regression"],
            "line 2 of texts.csv has the label 'good', and numbers are to be",
        ),
        (
            ["texts.csv", "--delta", "--max-length", "9"],
            "a delta keeps no --max-length, so that it would run at another",
        ),
        (["texts.csv", "-r", "1"], "--reduction 1 is the dense model itself: give 2 or more"),
        (["texts.csv", "-o", "texts.csv"], "texts.csv exists and is no earlier result: remove it, or write elsewhere"),
        (["texts.csv", "--backbone", "gpt"], "model type 'gpt2' is not supported: use one of bert"),
        (["texts.csv", "--backbone", "nowhere"], "nor on a hub in reach: pass its folder as --backbone"),
    ],
)
def test_bad_input_is_one_sentence_and_loses_nothing(call: Call, backbone: str, arguments: list[str], message: str):
    rows = Path(write_data()).read_text()
    Path("other.csv").write_text(rows.replace("text,label", "text,kind"))
    Path("texts.txt").write_text("good film\n")
    Path("few.csv").write_text("text,label\na,x\nb,y\n")
    Path("empty.csv").write_text("text,label\n" + ' ,good\n" ",bad\n' * 30)
    Path("alike.csv").write_text("text,label\n" + "film,good\nfilm,bad\n" * 30)
    Path("nan.csv").write_text(rows.rstrip("\n").rpartition(",")[0] + ",nan\n")
    Path("single.csv").write_text(rows.replace(",bad", ",good"))
    Path("gpt").mkdir()
    Path("gpt/config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2Model"]}))
    before = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    named = [] if "--backbone" in arguments else ["--backbone", backbone]
    assert message in call("train", *arguments, *named, *QUICK).refused()
    assert {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'DATA'."),
        (["d"], "Missing option '--backbone'."),
        (["d", "--backbone", "b", "--epochs", "0"], "Invalid value for '--epochs': 0 is not in the range"),
        (["d", "--backbone", "b", "--learning-rate", "0"], "Invalid value for '--learning-rate': 0"),
        (["d", "--backbone", "b", "--truncation-side", "middle"], "Invalid value for '--truncation-side'"),
    ],
)
def test_wrong_usage(call: Call, arguments: list[str], message: str):
    assert call("train", *arguments).refused(2).startswith(message)


# Training that tells when its second epoch begins, and waits there.
_MIDDLE = """
from coda_models.training.watch import Watch

def stop(self, args, state, control, **_):
    if state.epoch >= 1:
        wait("training")

Watch.on_epoch_begin = stop
sys.argv = ["coda-compile", "train", "texts.csv", "--backbone", {backbone!r}, "--epochs", "2", "--bottleneck", "8"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_where_it_goes_on(number: signal.Signals, backbone: str, call: Call, tmp_path: Path):
    def in_training(line: str) -> None:
        assert line == "training"

    write_data()
    code, environment = _MIDDLE.format(backbone=backbone), {**os.environ, "TMPDIR": str(tmp_path)}
    done = interrupted(number, code, in_training, env=environment)
    said = "interrupted, and .texts.pt.train keeps what is done: give the same command again to go on, or remove it"
    assert done.refused(130) == said
    assert sorted(path.name for path in Path.cwd().iterdir()) == [".texts.pt.train", "texts.csv"]
    again = call("train", "texts.csv", "--backbone", backbone, "--epochs", "2", "--bottleneck", "8").worked()
    assert "texts.pt" in again.splitlines()[3]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["texts.csv", "texts.pt"]

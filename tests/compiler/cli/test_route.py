"""Routing from the command line: one checkpoint, figures and the next command; or one sentence and nothing."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from tests.compiler.commands import Call, interrupted, whole
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_models import CodaConfig, convert, load, save
from coda_targets import Bundle

TEXTS = random_texts(60)
SMALL = ["--rank", "8", "--key-value-rank", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Hugging Face classifier."""
    folder = tmp_path_factory.mktemp("model") / "classifier"
    tiny_backbone("bert").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Models of NaN, and of weights that are finite and overflow, as folders; the latter as a checkpoint too."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, part, value in (("nan", "dense", float("nan")), ("huge", "LayerNorm", 3e38)):
        backbone = tiny_backbone("bert")
        with torch.no_grad():
            getattr(backbone.bert.encoder.layer[1].output, part).weight.fill_(value)
        backbone.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save(convert(backbone, CodaConfig(reduction=1)), folder / "huge.pt", tokenizer=tokenizer)
    return folder


def write_texts(name: str = "texts.csv") -> str:
    rows = (f"{text},LABEL_{i % 3}\n" for i, text in enumerate(TEXTS))
    Path(name).write_text("text,kind\n" + "".join(rows))
    return name


def test_from_a_dense_model_to_a_compiled_bundle(call: Call, model: Path):
    out = call("route", str(model), "--texts", write_texts(), "-r", "2", *SMALL, "-o", "routed.pt").worked()
    first, heading, dense, r2, *rest = out.splitlines()
    assert first.startswith("12 held-out texts of ")
    assert first.endswith("tokens at the median, 95 % intervals; fitted on 48 others")
    assert heading.split() == ["same", "label", "multiply-adds", "fitted", "in", "file"]
    assert (dense.split(), r2.split()[0], r2.split()[-1]) == (["dense", "100%"], "r=2", "routed.pt")
    assert rest[-1] == "next: coda-compile routed.pt"
    assert call("routed.pt", "-o", "bundle").worked().startswith("bundle: ")
    assert [layer.stand_in for layer in Bundle("bundle").manifest.layers] == [8, 8]
    assert "intact and right" in call("verify", "bundle").worked()
    assert json.loads(call("run", "bundle", "good film").worked())["label"].startswith("LABEL_")


def test_a_front_with_accuracy(call: Call, model: Path):
    options = ["--label-column", "kind", "--attention", "k-to-k", "--rank", "8", "-r", "2", "-r", "2,4"]
    out = call("route", str(model), "--texts", write_texts(), *options).worked()
    _, heading, dense, *rows = out.splitlines()
    assert heading.split()[2:5] == ["accuracy", "points", "lost"]
    assert dense.split()[0] == "dense"
    assert dense.split()[1].endswith("%")
    assert [row.split()[0] for row in rows[:2]] == ["r=2", "r=2,4"]
    assert rows[-2:] == ["next: coda-compile classifier-r2.pt", "next: coda-compile classifier-r2,4.pt"]
    assert load("classifier-r2,4.pt").model.coda_config.attention == "k_to_k"


def test_within_a_budget_r_is_told_before_the_figures(call: Call, model: Path):
    arguments = ["route", str(model), "--texts", write_texts(), "--rank", "4", "--key-value-rank", "4"]
    out = call(*arguments, "--budget", "0.6").worked().splitlines()
    reductions = load("classifier-routed.pt").model.coda_config.reduction
    assert isinstance(reductions, tuple)
    r = ",".join(map(str, reductions))
    assert re.fullmatch(
        rf"chosen: r={r} by layer, \d\d% of the multiply-adds; expected: same label [\d.]+%, .*", out[0]
    )
    assert out[1].endswith("fitted on 48 others")
    assert out[4].split()[0] == f"r={r}"
    assert out[5] == "next: coda-compile classifier-routed.pt"

    out = call(*arguments, "--accuracy-budget", "99", "-o", "kept.pt").worked().splitlines()
    r = ",".join(map(str, load("kept.pt").model.coda_config.layer_reductions(2)))
    told = r"\d\d% of the multiply-adds, of \d tried; expected: same label [\d.]+%, as on 12 texts kept aside"
    assert re.fullmatch(rf"chosen: r={r} by layer, {told}", out[0])
    assert out[1].endswith("fitted on 36 others")


def test_a_delta_goes_on_with_its_backbone(call: Call, model: Path):
    save(tiny_coda("bert", CodaConfig(reduction=1)), "delta.pt", delta=True)
    arguments = ["delta.pt", "--backbone", str(model), "--texts", write_texts(), *SMALL, "-o", "routed.pt"]
    out = call("route", *arguments).worked()
    assert out.splitlines()[-1] == f"next: coda-compile routed.pt --backbone {model}"
    assert Path("routed.pt").stat().st_size < Path(model / "model.safetensors").stat().st_size
    assert "pass one as --backbone" in call("route", "delta.pt", "--texts", "texts.csv").refused()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["MODEL", "--texts", "no.csv"],
            "no.csv does not exist: give a file with texts, .csv, .jsonl or a text a line",
        ),
        (["MODEL", "--texts", "few.txt"], "few.txt has 2 texts, and fitting takes 50 or more, better some hundred"),
        (["MODEL", "--texts", "empty.txt"], "empty.txt has 0 texts, and fitting takes 50 or more"),
        (["MODEL", "--texts", "alike.txt"], "the 60 texts in alike.txt are all the same: give texts like those of the"),
        (["MODEL", "--texts", "spaces.txt"], "only 1 of the 60 texts in spaces.txt differ to the model's tokenizer"),
        (["MODEL", "--texts", "blank.csv"], "60 of 60 texts in blank.csv are empty: give texts like those that the mo"),
        (["MODEL", "--texts", "header.csv"], "header.csv has no rows below its header"),
        (
            ["NAN", "--texts", "texts.csv"],
            "nan holds NaN or infinite weights in 'layers.1.block.feed_forward.down.weight'",
        ),
        (
            ["HUGE", "--texts", "texts.csv"],
            "gives NaN or infinite values for a few short sequences: its weights are dam",
        ),
        (["HUGE.pt", "--texts", "texts.csv"], "gives NaN or infinite values for"),
        (["t5", "--texts", "texts.csv"], "model type 't5' is not supported: use one of bert"),
        (
            ["MODEL", "--texts", "script.txt"],
            "of the tokens of the texts in script.txt are unknown to the model's token",
        ),
        (["MODEL", "--texts", "other.csv"], "other.csv has no column 'text': give a CSV file with the column text"),
        (["MODEL", "--texts", "texts.csv", "--label-column", "x"], "texts.csv has no column 'x': give a CSV file with"),
        (["MODEL", "--texts", "spam.csv", "--label-column", "kind"], "has the label 'spam': this model knows LABEL_0"),
        (
            ["MODEL", "--texts", "texts.csv", "-o", "no/routed.pt"],
            "no does not exist: make it, or write routed.pt else",
        ),
        (["MODEL", "--texts", "texts.csv", "-o", "texts.csv"], "texts.csv exists and is no earlier result: remove it"),
        (["MODEL", "--texts", "texts.csv", "-r", "2", "-r", "4", "-o", "x.pt"], "write {r} where r goes in --output"),
        (
            ["MODEL", "--texts", "texts.csv", "-r", "2", "--budget", "0.5"],
            "--reduction, --budget and --accuracy-budget each say how much is routed: give one of them",
        ),
        (
            ["MODEL", "--texts", "texts.csv", "--budget", "0.5", "-o", "x-{r}.pt"],
            "r is not known before it is chosen: name --output without {r}",
        ),
        (
            ["MODEL", "--texts", "texts.csv", "--rank", "8", "--key-value-rank", "8", "--budget", "0.01"],
            "no r of 1, 2, 4, 8, 16 brings the layers down to 0.01 of their multiply-adds, 0.",
        ),
        (["MODEL", "--texts", "texts.csv", "-r", "many"], "reduction 'many' is no ratio"),
        (["MODEL", "--texts", "texts.csv", "-r", "1"], "--reduction 1 is the dense model itself: give 2 or more"),
        (["MODEL", "--texts", "texts.csv", "-r", "2,2,2"], "reduction lists 3 layers but the model has 2"),
        (
            ["MODEL", "--texts", "texts.csv", "--attention", "k-to-k", "--key-value-rank", "8"],
            "no keys: leave --key-value-rank out",
        ),
        (
            ["MODEL", "--texts", "texts.csv", "--rank", "900", "--steps", "9"],
            "tokens of these texts, and stand-ins of rank 900 need 901",
        ),
        (
            ["MODEL", "--texts", "texts.csv", "--rank", "900"],
            "tokens of these texts, and stand-ins of rank 900 need 901",
        ),
        (["MODEL", "--texts", "texts.csv", "--backbone", "b"], "is complete: leave --backbone out"),
        (
            ["ROUTED", "--texts", "texts.csv"],
            "this model routes already, at r = 2: give the dense one, or compile it as",
        ),
        (["BUNDLE", "--texts", "texts.csv"], "is a compiled bundle already: give the model that it was made from"),
        (["gpt2", "--texts", "texts.csv"], "model type 'gpt2' is not supported: use one of bert"),
        (["nowhere", "--texts", "texts.csv"], "nowhere does not exist: give a model.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_loses_nothing(
    call: Call, model: Path, damaged: Path, checkpoint: Path, compiled: Bundle, arguments: list[str], message: str
):
    write_texts()
    rows = Path("texts.csv").read_text()
    Path("spam.csv").write_text(rows.replace("LABEL_1", "spam"))
    Path("other.csv").write_text(rows.replace("text,kind", "texte,kind"))
    Path("few.txt").write_text("good film\nbad plot\n")
    Path("empty.txt").write_text("\n\n")
    Path("alike.txt").write_text("good film\n" * 60)
    Path("script.txt").write_text("".join(f"слово{i} слово\n" for i in range(60)))
    Path("spaces.txt").write_text("".join(f"good{' ' * (i + 1)}film\n" for i in range(60)))
    Path("blank.csv").write_text("text\n" + '""\n' * 60)
    Path("header.csv").write_text("text\n")
    for name, architecture in (("gpt2", "GPT2Model"), ("t5", "T5ForConditionalGeneration")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps({"model_type": name, "architectures": [architecture]}))
    before = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    names = {
        "MODEL": str(model),
        "NAN": str(damaged / "nan"),
        "HUGE": str(damaged / "huge"),
        "HUGE.pt": str(damaged / "huge.pt"),
        "ROUTED": str(checkpoint),
        "BUNDLE": str(compiled.folder),
    }
    assert message in call("route", *(names.get(argument, argument) for argument in arguments)).refused()
    assert {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()} == before


def test_warnings_are_sentences(model: Path, tmp_path: Path):
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"{text}\n" for text in TEXTS) + '""\n')
    done = whole("route", str(model), "--texts", "texts.csv", *SMALL, "-o", "routed.pt", cwd=tmp_path)
    assert done.status == 0
    assert done.err == "coda-compile: 1 of 61 texts in texts.csv are empty and are left out\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'."),
        (["m"], "Missing option '--texts'."),
        (["m", "--texts", "t", "--attention", "all"], "Invalid value for '--attention'"),
        (["m", "--texts", "t", "--budget", "1"], "Invalid value for '--budget': 1.0 is not in the range 0<x<1"),
        (["m", "--texts", "t", "--accuracy-budget", "-1"], "Invalid value for '--accuracy-budget'"),
        (["m", "--texts", "t", "--steps", "-1"], "Invalid value for '--steps': -1 is not in the range x>=0."),
        (["m", "--texts", "t", "--rank", "0"], "Invalid value for '--rank': 0 is not in the range"),
    ],
)
def test_wrong_usage(call: Call, arguments: list[str], message: str):
    assert call("route", *arguments).refused(2).startswith(message)


# A command that tells when it is in the middle, and waits there.
_MIDDLE = """
from {module} import {owner}

{owner}.{name} = lambda *_: wait("in the middle")
sys.argv = ["coda-compile", "route", {model!r}, "--texts", "texts.csv", *{options!r}, "-o", "routed.pt"]
main()
"""


def said_when(number: signal.Signals, model: Path, work: Path, scratch: Path, place: str, *options: str) -> str:
    """What a command says that is interrupted where it calls a method of a module."""
    for folder in (work, scratch):
        folder.mkdir()
    rows = "".join(f"{text}\n" for text in TEXTS)
    (work / "texts.csv").write_text("text\n" + rows)
    module, owner, name = place.split(":")
    code = _MIDDLE.format(module=module, owner=owner, name=name, model=str(model), options=[*SMALL, *options])

    def in_the_middle(line: str) -> None:
        assert line == "in the middle"

    done = interrupted(number, code, in_the_middle, cwd=work, env={**os.environ, "TMPDIR": str(scratch)})
    return done.refused(130)


FIT, STEP = "coda_models.fitting.regression:Regression:thin", "coda_models.training.train:CodaTrainer:training_step"


@pytest.mark.parametrize("steps", [[], ["--steps", "4"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fit_leaves_nothing(number: signal.Signals, steps: list[str], model: Path, tmp_path: Path):
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    said = said_when(number, model, work, scratch, FIT, *steps)
    assert said == "interrupted, nothing half-written was kept"
    assert [path.name for path in work.iterdir()] == ["texts.csv"]
    assert [path for path in scratch.iterdir() if "coda" in path.name] == []


def test_interrupted_steps_go_on(model: Path, tmp_path: Path):
    work = tmp_path / "work"
    said = said_when(signal.SIGINT, model, work, tmp_path / "scratch", STEP, "--steps", "4")
    assert said == (
        "interrupted, and .routed.pt.steps keeps what is done: give the same command again to go on, or remove it"
    )
    assert (work / ".routed.pt.steps" / "fitted-4.pt").is_file()
    arguments = ["route", str(model), "--texts", "texts.csv", *SMALL, "-o", "routed.pt"]
    other = whole(*arguments, "--steps", "5", cwd=work).refused()
    assert other.startswith(".routed.pt.steps holds what a run with other options, texts or weights left")
    out = whole(*arguments, "--steps", "4", cwd=work).worked()
    assert re.search(r"^steps, r=4: same label \d+\.\d% before, \d+\.\d% after$", out, re.MULTILINE)
    assert sorted(path.name for path in work.iterdir()) == ["routed.pt", "texts.csv"]

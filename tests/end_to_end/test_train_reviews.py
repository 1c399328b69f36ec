"""The training example on a handful of short texts: its results, and that an interrupted study goes on."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tests.conftest import tiny_backbone
from transformers import PreTrainedTokenizerFast, TrainerCallback

from coda_models import load
from coda_models.training import recipe

ROOT = Path(__file__).parents[2]


def program(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of this project as a module."""
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    specification = importlib.util.spec_from_file_location(f"{Path(path).stem}_program", ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)  # where dataclasses look their annotations up
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return program("examples/train_reviews.py", monkeypatch)


@pytest.fixture
def arguments(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> list[str]:
    backbone, data = tmp_path / "backbone", tmp_path / "texts.csv"
    tiny_backbone("bert", "feature-extraction").save_pretrained(backbone)  # without a head, as pretrained ones are
    tokenizer.save_pretrained(backbone)
    with data.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(40):
            word = ("good", "bad")[i % 2]
            rows.writerow([" ".join([f"w{(i * 7 + j) % 90}" for j in range(i % 9 + 3)] + [word]), word])
    return ["--data", str(data), "--backbone", str(backbone), "--seeds", "3", "--reductions", "2"]


def run(example: ModuleType, arguments: list[str], out: Path) -> Result:
    return CliRunner().invoke(example.main, [*arguments, "--out", str(out)])


def test_every_run_leaves_a_checkpoint_and_its_accuracy(example: ModuleType, arguments: list[str], tmp_path: Path):
    out = tmp_path / "runs"
    done = run(example, [*arguments[:-1], "2,measured", "--share", "0.6"], out)
    assert done.exit_code == 0, done.output
    assert "8 held-out texts" in done.output
    names = {"seed3-r1": ["1", "1"], "seed3-r2": ["2", "2"], "seed3-rmeasured": None}
    assert {path.name for path in out.iterdir()} == {f"{name}{end}" for name in names for end in (".pt", ".json")}
    for name, reductions in names.items():
        found = json.loads((out / f"{name}.json").read_text())
        assert 0 <= found["accuracy"] <= 1
        assert found["seconds"] > 0
        assert found["reductions"] == (reductions or found["reductions"])
        model = load(out / f"{name}.pt", backbone=arguments[3]).model
        assert [str(layer.reduction) for layer in model.coda_layers()] == found["reductions"]
    assert set(found["reductions"]) > {"1"} or "1" not in found["reductions"]  # not everything stays dense


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.zip", b"PK no zip", "holds no labelled texts: give a zip of NAME/LABEL/FILE.txt"),
        ("texts.csv", b"words,label\ngood,1\n", "holds no labelled texts"),
        ("texts.csv", b"text,label\n\xff\xfe,1\n", "holds no labelled texts"),
        ("texts.csv", b"", "holds no labelled texts"),
        (None, b"", "the backbone '/nowhere' is neither a folder"),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    name: str | None, content: bytes, message: str, example: ModuleType, arguments: list[str], tmp_path: Path
):
    if name is None:
        arguments[3] = "/nowhere"
    else:
        path = tmp_path / name
        path.write_bytes(content)
        arguments[1] = str(path)
    done = run(example, arguments, tmp_path / "runs")
    assert done.exit_code == 1
    assert message in done.output
    assert isinstance(done.exception, SystemExit)
    assert not any((tmp_path / "runs").iterdir())


def test_an_interrupted_study_goes_on_and_ends_the_same(
    example: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(example, arguments, whole).exit_code == 0

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:  # of 24: two steps an epoch
                raise KeyboardInterrupt

    trainer = recipe.CodaTrainer
    with monkeypatch.context() as patched:
        patched.setattr(
            recipe, "CodaTrainer", lambda *, callbacks, **rest: trainer(callbacks=[*callbacks, Interrupt()], **rest)
        )
        assert run(example, arguments, parts).exit_code != 0
    assert {path.name for path in (parts / "seed3-r1-epochs").iterdir()} == {"checkpoint-4", "epochs-of-fit.txt"}

    assert run(example, arguments, parts).exit_code == 0
    assert json.loads((parts / "seed3-r1.json").read_text())["seconds"] is None
    for name in ("seed3-r1", "seed3-r2"):
        expected, actual = (load(folder / f"{name}.pt", backbone=arguments[3]).model for folder in (whole, parts))
        for (key, a), b in zip(expected.state_dict().items(), actual.state_dict().values(), strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0, msg=f"{name} {key}")


def test_rows_of_the_recipe_start_from_the_dense_adapter(
    example: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs, out = tmp_path / "runs", tmp_path / "rows"
    assert run(example, arguments, runs).exit_code == 0
    benchmark = program("benchmarks/recipe_rows.py", monkeypatch)
    data, backbone = arguments[1], arguments[3]
    command = ["--data", data, "--backbone", backbone, "--dense", str(runs), "--out", str(out), "--seeds", "3"]
    done = CliRunner().invoke(benchmark.main, [*command, "--rows", "two-epochs,drawn,spliced"])
    assert done.exit_code == 0, done.output
    names = ("two-epochs-seed3.json", "drawn-seed3.json", "spliced-seed3.json")
    assert {path.name for path in out.iterdir()} == set(names)
    plain, drawn, spliced = (json.loads((out / name).read_text()) for name in names)
    assert list(plain["accuracy"]) == ["4", "1", "2", "3", "8", "100"]
    assert list(drawn["accuracy"]) == ["4", "1", "2", "8"]
    assert list(spliced["accuracy"]) == ["4"]
    assert drawn["multiply_adds"]["8"] < drawn["multiply_adds"]["4"] == plain["multiply_adds"]["4"]

    printed = CliRunner().invoke(benchmark.main, ["--out", str(out), "--table"]).output
    assert printed.count("\n| ") == 6 + 4 + 1
    alone = CliRunner().invoke(benchmark.main, [*command, "--sensitivity"]).output
    assert [line.split(": r = 1 0.000, r = 2 ")[0] for line in alone.splitlines()] == [
        f"seed 3, layer {i}" for i in range(2)
    ]
    unknown = CliRunner().invoke(benchmark.main, [*command, "--rows", "other"])
    assert "row 'other' is unknown: use some of recipe" in unknown.output


def test_ways_to_train_the_dense_adapter_are_cross_validated(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    benchmark, out = program("benchmarks/dense_recipes.py", monkeypatch), tmp_path / "dense"
    command = ["--data", arguments[1], "--backbone", arguments[3], "--out", str(out)]
    rows = ["--rows", "five-epochs,taught"]
    done = CliRunner().invoke(benchmark.main, [*command, *rows])
    assert done.exit_code == 0, done.output
    names = {f"{name}-fold{fold}.json" for name in ("five-epochs", "taught") for fold in range(4)}
    assert {path.name for path in out.iterdir()} == names
    table = CliRunner().invoke(benchmark.main, ["--out", str(out), "--table"]).output
    assert [line.split(" |")[:2] for line in table.splitlines()[2:]] == [
        ["| five-epochs", " 5"],
        ["| taught", " 5 + 8"],
    ]

    made = CliRunner().invoke(benchmark.main, [*command, "--rows", "five-epochs", "--seeds", "3"])
    assert made.exit_code == 0, made.output
    model = load(out / "five-epochs" / "seed3-r1.pt", backbone=arguments[3]).model
    assert {layer.reduction for layer in model.coda_layers()} == {1}

    monkeypatch.setattr(benchmark, "fit", None)  # nothing is done again
    assert CliRunner().invoke(benchmark.main, [*command, *rows]).output.rstrip().endswith(table.rstrip())
    assert CliRunner().invoke(benchmark.main, [*command, "--rows", "five-epochs", "--seeds", "3"]).exit_code == 0
    unknown = CliRunner().invoke(benchmark.main, [*command, "--rows", "other"])
    assert "row 'other' is unknown: use some of five-epochs" in unknown.output

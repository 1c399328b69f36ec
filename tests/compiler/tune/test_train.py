"""Training by the library: the checkpoint gives the figures that were told; an interrupted run goes on to the bit."""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compiler.tune.words import random_texts
from tests.conftest import tiny_backbone
from transformers import PreTrainedTokenizerFast, TrainerCallback

from coda_compile import CompileOptions, RouteOptions, TrainOptions, compile, train
from coda_compile.errors import CodaError, CompileWarning, OptionError
from coda_compile.inspect.predict import predict
from coda_compile.sources import read_source
from coda_compile.text_files import read_table
from coda_compile.tune import linear
from coda_compile.tune import train as tune_train
from coda_compile.tune.agreement import accuracy, answers, kind_of
from coda_compile.tune.labels import read_labels
from coda_compile.tune.texts import batches, distinct, held_out_of
from coda_compile.tune.train import Trained
from coda_models import load
from coda_models.errors import CheckpointError, ConfigError, UnsupportedModelError
from coda_models.training import recipe

TEXTS = [f"{text}{(' good' if i % 2 else ' bad') * 3}" for i, text in enumerate(random_texts(80, most=5))]
CLASSES = ["yes" if i % 2 else "no" for i in range(80)]
SHORT: dict[str, Any] = {"epochs": 1, "bottleneck": 8}
SMALL = RouteOptions(stand_in=8, key_value_rank=8)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny pretrained encoder with its tokenizer."""
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", tokenizer)


def save_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast, family: str = "bert") -> Path:
    tiny_backbone(family, "feature-extraction").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, labels: Sequence[Any], texts: Sequence[Any] = TEXTS, column: str = "label") -> Path:
    """A CSV file, or JSON lines by its name; texts that are pairs get the second column."""
    paired = not isinstance(texts[0], str)
    rows = [
        {"text": text[0], "text_pair": text[1], column: label} if paired else {"text": text, column: label}
        for text, label in zip(texts, labels, strict=True)
    ]
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def trained(data: Path, backbone: Path, output: Path, **options: Any) -> Trained:
    budgets = {name: options.pop(name) for name in ("budget", "accuracy_budget") if name in options}
    how = {"routing": replace(options.pop("routing", SMALL), **budgets), "reductions": options.pop("reductions", None)}
    return train(data, backbone, TrainOptions(**{**SHORT, **options}), output=output, **how)


def held_out_figures(path: Path, data: Path, wanted: Callable[[Any, Any], Any], backbone: Any = None) -> Any:
    """What the model in a checkpoint is worth on the texts that the split holds out."""
    source = read_source(path, backbone=backbone)
    rows = distinct(read_table(data, "label"), data, "training")
    labels = read_labels(rows, data, None)
    places = labels.held_out(held_out_of(len(rows)), 0)
    held_out = [rows[i] for i in places]
    assert source.tokenizer is not None
    given = answers(source.model, batches(held_out, source.tokenizer, source.model.signature))
    truth = [np.atleast_1d(np.array(labels.values[i], dtype=float)) for i in places]
    return accuracy(kind_of(source.model), truth, given)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_classes_are_learned_and_the_checkpoint_gives_the_figures(
    family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    backbone = save_encoder(tmp_path / "encoder", tokenizer, family)
    data = write(tmp_path / "texts.csv", CLASSES)
    found = trained(data, backbone, tmp_path / "trained.pt", epochs=15, learning_rate=1e-2)
    assert found.accuracy["accuracy"].middle >= 0.9
    assert held_out_figures(found.path, data, accuracy) == found.accuracy
    assert (found.held_out, found.trained_on, found.classes) == (16, 64, 2)
    assert found.baseline is not None
    assert found.baseline["accuracy"].middle >= 0.9
    model = load(found.path).model
    assert model.hf_config.id2label == {0: "no", 1: "yes"}
    assert model.hf_config.problem_type == "single_label_classification"
    assert {layer.reduction for layer in model.coda_layers()} == {1}
    assert model.coda_config.bottleneck == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "texts.csv", "trained.pt"]


def test_several_labels_of_a_text(encoder_folder: Path, tmp_path: Path):
    both = [[name for name in ("w", "good", "bad") if name in text] for text in TEXTS]
    data = write(tmp_path / "texts.jsonl", both)
    found = trained(data, encoder_folder, tmp_path / "trained.pt", epochs=15, learning_rate=1e-2)
    assert found.problem_type == "multi_label_classification"
    assert set(found.accuracy) == {"micro F1", "exact set"}
    assert found.accuracy["micro F1"].middle >= 0.9
    assert held_out_figures(found.path, data, accuracy) == found.accuracy
    config = load(found.path).model.hf_config
    assert config.problem_type == "multi_label_classification"
    assert set(config.id2label.values()) == {"w", "good", "bad"}


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.25), (1000.0, -5000.5)])
def test_numbers_of_any_size(scale: float, shift: float, encoder_folder: Path, tmp_path: Path):
    numbers = [scale * ("good" in text) + shift for text in TEXTS]
    data = write(tmp_path / "texts.csv", numbers)
    found = trained(data, encoder_folder, tmp_path / "trained.pt", epochs=10, learning_rate=1e-2)
    assert found.problem_type == "regression"
    assert found.classes == 1
    assert found.accuracy["R² with labels"].middle > 0.5
    assert held_out_figures(found.path, data, accuracy) == found.accuracy


def test_whole_numbers_are_names_unless_it_is_said(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", [i % 12 for i in range(80)])
    names = load(trained(data, encoder_folder, tmp_path / "a.pt").path).model.hf_config.id2label
    assert list(names.values()) == [str(i) for i in range(12)]
    assert trained(data, encoder_folder, tmp_path / "b.pt", problem_type="regression").problem_type == "regression"


def test_pairs(encoder_folder: Path, tmp_path: Path):
    """A pair is one text to its tokenizer, with types."""
    pairs = [(text, other) for text, other in zip(TEXTS, reversed(TEXTS), strict=True)]
    data = write(tmp_path / "texts.csv", CLASSES, pairs)
    found = trained(data, encoder_folder, tmp_path / "trained.pt")
    assert held_out_figures(found.path, data, accuracy) == found.accuracy


@pytest.mark.parametrize("side", ["left", "right"])
def test_training_and_running_cut_the_same_end(
    side: str, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What says the class stands at one end, and the other is cut off, in training, in the checkpoint and behind it."""
    texts = [
        f"{word} {text} {text}" if side == "right" else f"{text} {text} {word}"
        for word, text in zip(["good", "bad"] * 40, random_texts(80, seed=1, most=12), strict=True)
    ]
    data = write(tmp_path / "texts.csv", ["no", "yes"] * 40, texts)
    options = {"max_length": 6, "truncation_side": side, "epochs": 8, "learning_rate": 1e-2}
    found = trained(data, encoder_folder, tmp_path / "trained.pt", **options)
    assert found.accuracy["accuracy"].middle >= 0.9
    assert found.tokens <= 6
    tokenizer = load(found.path).tokenizer
    assert tokenizer is not None
    assert (tokenizer.truncation_side, tokenizer.model_max_length) == (side, 6)
    bundle = compile(found.path, CompileOptions(), output=tmp_path / "bundle")
    records = [record["label"] for _, record, _ in predict(bundle, texts)]
    assert np.mean(np.array(records) == np.array(["no", "yes"] * 40)) >= 0.9


def test_routed_models_are_measured_on_the_same_texts(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", CLASSES)
    found = trained(data, encoder_folder, tmp_path / "trained.pt", reductions=["2", ["2", "1"]])
    assert found.front is not None
    assert found.front.accuracy == found.accuracy
    assert (found.front.held_out, found.front.fitted_on) == (16, 64)
    assert [one.path.name for one in found.front.routed] == ["trained-r2.pt", "trained-r2,1.pt"]
    for one in found.front.routed:
        assert held_out_figures(one.path, data, accuracy) == one.accuracy


def test_a_routed_model_of_several_labels_has_its_accuracy_too(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.jsonl", [["good"] if "good" in text else ["bad", "w"] for text in TEXTS])
    front = trained(data, encoder_folder, tmp_path / "trained.pt", reductions=["2"]).front
    assert front is not None
    assert set(front.routed[0].accuracy) == {"micro F1", "exact set"}
    assert front.routed[0].lost is None


def test_r_within_a_budget(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", CLASSES)
    front = trained(data, encoder_folder, tmp_path / "trained.pt", budget=0.9).front
    assert front is not None
    assert front.chosen is not None
    assert [one.path.name for one in front.routed] == ["trained-routed.pt"]


def test_a_delta_leaves_the_backbone_out(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", CLASSES)
    whole = trained(data, encoder_folder, tmp_path / "whole.pt")
    delta = trained(data, encoder_folder, tmp_path / "delta.pt", delta=True, reductions=["2"])
    assert delta.accuracy == whole.accuracy
    assert not any(".block.attention" in name for name in torch.load(delta.path, weights_only=True)["state"])
    assert held_out_figures(delta.path, data, accuracy, str(encoder_folder)) == delta.accuracy
    assert delta.front is not None
    assert delta.front.backbone == encoder_folder


def test_an_interrupted_run_goes_on_and_ends_the_same(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write(tmp_path / "texts.csv", CLASSES)
    whole = trained(data, encoder_folder, tmp_path / "whole.pt", epochs=3)
    assert whole.seconds is not None
    with (
        interrupted_at(9, monkeypatch),
        pytest.raises(KeyboardInterrupt, match="keeps what is done: give the same command again to go on"),
    ):
        trained(data, encoder_folder, tmp_path / "cut.pt", epochs=3)
    assert not (tmp_path / "cut.pt").exists()
    with pytest.raises(CheckpointError, match="holds what a run with other options, texts or weights left"):
        trained(data, encoder_folder, tmp_path / "cut.pt", epochs=4)
    cut = trained(data, encoder_folder, tmp_path / "cut.pt", epochs=3)
    assert cut.seconds is None
    assert cut.accuracy == whole.accuracy
    mine, yours = (load(one.path).model.state_dict() for one in (whole, cut))
    assert all(torch.equal(mine[name], yours[name]) for name in mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt", "texts.csv", "whole.pt"]


def test_a_run_that_was_interrupted_while_routing_is_not_trained_again(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write(tmp_path / "texts.csv", CLASSES)
    with monkeypatch.context() as patch:
        patch.setattr(tune_train, "route", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt, match="keeps what is done: give the same command again to go on"):
            trained(data, encoder_folder, tmp_path / "trained.pt", reductions=["2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".trained.pt.train", "texts.csv", "trained.pt"]
    before = load(tmp_path / "trained.pt").model.state_dict()
    monkeypatch.setattr(tune_train, "fit", raising(AssertionError()))
    found = trained(data, encoder_folder, tmp_path / "trained.pt", reductions=["2"])
    assert found.seconds is None
    assert found.front is not None
    assert found.front.accuracy == found.accuracy
    assert all(torch.equal(before[name], tensor) for name, tensor in load(found.path).model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.csv", "trained-r2.pt", "trained.pt"]


def raising(error: BaseException) -> Callable[..., Any]:
    def stopped(*_: Any, **__: Any) -> None:
        raise error

    return stopped


def test_what_was_interrupted_in_its_first_epoch_leaves_nothing(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write(tmp_path / "texts.csv", CLASSES)
    with interrupted_at(2, monkeypatch), pytest.raises(KeyboardInterrupt, match="^$"):
        trained(data, encoder_folder, tmp_path / "cut.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["texts.csv"]


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Training is interrupted before a step while this lasts."""

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    trainer = recipe.CodaTrainer
    context = monkeypatch.context()
    patch = context.__enter__()
    patch.setattr(
        recipe, "CodaTrainer", lambda *, callbacks, **rest: trainer(callbacks=[*callbacks, Interrupt()], **rest)
    )

    class Until:
        def __enter__(self) -> None: ...

        def __exit__(self, *raised: Any) -> None:
            context.__exit__(None, None, None)

    return Until()


def test_a_diverging_run_loses_nothing(encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write(tmp_path / "texts.csv", CLASSES)
    trained(data, encoder_folder, tmp_path / "trained.pt")
    before = (tmp_path / "trained.pt").read_bytes()
    with pytest.raises(OptionError, match="give a lower learning_rate than 1e"):
        trained(data, encoder_folder, tmp_path / "trained.pt", learning_rate=1e30, epochs=4)
    assert (tmp_path / "trained.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.csv", "trained.pt"]


def test_the_same_command_gives_the_same_model_and_another_seed_another(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", CLASSES)
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # whatever was drawn before
        states.append(load(trained(data, encoder_folder, tmp_path / f"{name}.pt", seed=seed).path).model.state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_without_scikit_learn_there_is_no_baseline(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(linear, "find_spec", lambda name: None)
    assert trained(write(tmp_path / "texts.csv", CLASSES), encoder_folder, tmp_path / "trained.pt").baseline is None


def test_stages_and_progress_are_told(encoder_folder: Path, tmp_path: Path):
    stages, steps = [], []
    train(
        write(tmp_path / "texts.csv", CLASSES),
        encoder_folder,
        TrainOptions(**SHORT),
        output=tmp_path / "trained.pt",
        stage=lambda name: nullcontext(stages.append(name)),
        progress=lambda *told: steps.append(told),
    )
    assert stages == ["read", "load", "train", "save", "measure"]
    assert steps[-1] == ("epoch 1 of 1", 4, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"problem_type": "several"}, OptionError, "problem_type 'several' is unknown: use one of single_label"),
        ({"truncation_side": "middle"}, OptionError, "truncation_side 'middle' is no side: use left or right"),
        ({"bottleneck": 0}, OptionError, "bottleneck 0 leaves nothing to train in a layer: give 1 or more"),
        ({"epochs": 0}, OptionError, "epochs and learning_rate are above 0, or nothing is learned"),
        ({"learning_rate": float("nan")}, OptionError, "epochs and learning_rate are above 0"),
        ({"delta": True, "max_length": 9}, OptionError, "a delta keeps no max_length, so that it would run at another"),
        ({"max_length": 67}, OptionError, "max_length 67 is more than the 66 tokens that the backbone takes"),
        ({"label_column": "kind"}, CodaError, "texts.csv has no column 'kind': give a CSV file with the columns text"),
        ({"reductions": ["1"]}, OptionError, "reduction 1 is the dense model itself: give 2 or more"),
        ({"reductions": ["2", "2"]}, OptionError, r"two models would go to .*trained-r2\.pt: give each reduction once"),
        ({"reductions": ["0"]}, ConfigError, "reduction 0 is below 1"),
        (
            {"routing": RouteOptions(steps=9)},
            OptionError,
            "steps are taken by a routed model: give reduction, budget or",
        ),
        ({"reductions": ["2"], "budget": 0.5}, OptionError, "each say how much is routed: give one of them"),
        ({"reductions": [["2", "2", "2"]]}, ConfigError, "reduction lists 3 layers but the model has 2"),
        (
            {"backbone": "nowhere"},
            OptionError,
            "the backbone 'nowhere' is neither a folder, nor in the local hub cache",
        ),
        ({"output": "no/trained.pt"}, CodaError, "no does not exist: make it, or write trained.pt elsewhere"),
        ({"output": "texts.csv"}, CodaError, "texts.csv exists and is no earlier result: remove it"),
    ],
)
def test_refused_options_leave_nothing_behind(
    options: dict[str, Any], error: type[CodaError], message: str, encoder_folder: Path, tmp_path: Path
):
    data = write(tmp_path / "texts.csv", CLASSES)
    output = tmp_path / options.pop("output", "trained.pt")
    with pytest.raises(error, match=message):
        trained(data, options.pop("backbone", encoder_folder), output, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.csv"]


def test_a_backbone_that_is_no_encoder_of_text(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", CLASSES)
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedModelError, match="model type 'gpt2' is not supported: use one of bert"):
        trained(data, tmp_path / "gpt", tmp_path / "trained.pt")
    bare = tmp_path / "bare"
    tiny_backbone("bert", "feature-extraction").save_pretrained(bare)
    with pytest.raises(OptionError, match=r"backbone .*bare has no tokenizer: save one with it"):
        trained(data, bare, tmp_path / "trained.pt")
    assert not (tmp_path / "trained.pt").exists()


def test_texts_of_a_foreign_script(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", CLASSES, [f"слово{i}" for i in range(80)])
    with pytest.raises(CodaError, match="of the texts in .* are unknown to the model's tokenizer"):
        trained(data, encoder_folder, tmp_path / "trained.pt")


def test_empty_texts_are_left_out_and_told_of(encoder_folder: Path, tmp_path: Path):
    data = write(tmp_path / "texts.csv", [*CLASSES, "no"], [*TEXTS, " "])
    with pytest.warns(CompileWarning, match="1 of 81 texts in .* are empty and are left out"):
        assert trained(data, encoder_folder, tmp_path / "trained.pt").trained_on == 64

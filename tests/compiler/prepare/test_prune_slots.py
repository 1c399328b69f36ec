"""Slots pruned by their gates: which ones go, what is promised of them, what is refused, and what a bundle says of it."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.bundling.build_report import read_report
from coda_compile.cli.main import cli
from coda_compile.errors import CodaError
from coda_compile.prepare.prune_slots import _compare, prune_slots
from coda_compile.prepare.pruning import PrunedLayer, Pruning
from coda_compile.verify.cases import make_case
from coda_models import CodaConfig, CodaModel, save
from coda_models.model import CodaOutput
from coda_ops.capacity import slot_count
from coda_targets.bundle import Arrays


def spread(config: CodaConfig, apart: float = 3.0) -> CodaModel:
    """A tiny model whose scores lie apart, so that many gates are nearly closed."""
    model = tiny_coda("bert", config)
    with torch.no_grad():
        for layer in model.coda_layers():
            if layer.router is not None:
                layer.router.weight.mul_(apart / layer.router.weight.std())
    return model


def arrays(model: CodaModel, *lengths: int) -> list[Arrays]:
    return [make_case(model.signature, 1, n, ragged=False, seed=n).inputs for n in lengths]


def tensors(texts: list[Arrays]) -> list[dict[str, torch.Tensor]]:
    return [{name: torch.from_numpy(array) for name, array in text.items()} for text in texts]


def gates(model: CodaModel, text: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [routing.gates[0] for routing in model(**text, output_routing=True).routing if routing is not None]


@given(st.floats(0.01, 0.95), st.lists(st.integers(1, 60), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_gate_that_reached_the_threshold_keeps_its_slot(threshold: float, lengths: list[int]):
    model = spread(CodaConfig(reduction=2))
    texts = tensors(arrays(model, *lengths))
    before = [gates(model, text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coda_compile.prepare.prune_slots._MOST_CHANGED", 1.0)
        pruning = prune_slots(model, threshold, texts)
    changed = {one.layer: one for one in pruning.layers}
    for i, layer in enumerate(model.coda_layers()):
        reached = [int((each[i] >= threshold).sum()) for each in before]
        assert layer.reduction >= 2
        assert all(slot_count(n, layer.reduction) >= m for n, m in zip(lengths, reached, strict=True))
        assert (layer.reduction > 2) == (i in changed)
        if i in changed:
            assert 0 <= changed[i].dropped < threshold
            # Some text needs all that is left.
            pairs = zip(lengths, reached, strict=True)
            assert any(slot_count(n, layer.reduction) == max(1, m) for n, m in pairs)


def test_layers_that_do_not_route_stay_as_they_are():
    model = spread(CodaConfig(reduction=2, routed_layers=(1,)))
    pruning = prune_slots(model, 0.3, tensors(arrays(model, 40, 50)))
    assert [one.layer for one in pruning.layers] == [1]
    assert next(layer.reduction for layer in model.coda_layers()) == 1


def test_nothing_under_the_threshold_prunes_nothing():
    model = spread(CodaConfig(reduction="7/2"), apart=0.01)
    pruning = prune_slots(model, 1e-9, tensors(arrays(model, 20)))
    assert pruning == Pruning(1e-9, 1, 0, 0.0, True, ())
    assert model.coda_config.reduction == Fraction(7, 2)
    assert str(pruning) == "in every layer some text opens its last gate to 1e-09 or more: nothing is pruned"


def test_a_threshold_that_changes_answers_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.prepare.prune_slots._MOST_CHANGED", -1.0)
    model = spread(CodaConfig(reduction=2))
    told = r"^prune_gates 0.9 changes \d+ of 2 answers to the texts of calibration, more than 1 in 100: give a lower"
    with pytest.raises(CodaError, match=told):
        prune_slots(model, 0.9, tensors(arrays(model, 40, 50)))


@pytest.mark.parametrize("task", ["feature-extraction", "token-classification"])
def test_other_tasks_are_compared_by_what_they_answer(task: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.prepare.prune_slots._MOST_CHANGED", 1.0)
    model = spread(CodaConfig(reduction=2, task=task))
    pruning = prune_slots(model, 0.05, tensors(arrays(model, 40, 50)))
    assert pruning.answers == (2 if task == "feature-extraction" else 90)
    assert pruning.of_logits == (task == "token-classification")
    assert pruning.layers
    assert 0 < pruning.changed < pruning.answers or task == "feature-extraction"
    assert pruning.moved > 0


@pytest.mark.parametrize(("kind", "labels"), [("regression", 3), (None, 1), ("multi_label_classification", 1)])
def test_numbers_are_no_answers_to_compare(kind: str | None, labels: int):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    model.hf_config.id2label = {i: f"LABEL_{i}" for i in range(labels)}
    model.hf_config.problem_type = kind
    with pytest.raises(CodaError, match=rf"this model gives a number \(problem_type '\w+', num_labels = {labels}\): l"):
        prune_slots(model, 0.5, tensors(arrays(model, 9)))


def test_labels_that_are_right_by_themselves_are_compared_by_themselves():
    old, new = (CodaOutput(logits=torch.tensor(rows)) for rows in ([[3.0, 0.1], [3.0, -1]], [[3.0, -0.1], [2.0, -1]]))
    assert _compare(old, new, each=True)[0].tolist() == [True, False]
    assert _compare(old, new, each=False)[0].tolist() == [False, False]


def test_what_cannot_be_pruned_is_said(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    dense = tiny_coda("bert", CodaConfig(reduction=1))
    with pytest.raises(CodaError, match=r"^this model routes in no layer, so that there are no gates to prune$"):
        prune_slots(dense, 0.1, tensors(arrays(dense, 5)))
    routed = tiny_coda("bert", CodaConfig(reduction=2))
    with pytest.raises(CodaError, match=r"calibration holds none: give some$"):
        prune_slots(routed, 0.1, [])
    with pytest.raises(CodaError, match=r"^prune_gates measures gates on calibration data: give"):
        compile(routed, CompileOptions(prune_gates=0.1), output=tmp_path / "b")
    with pytest.raises(CodaError, match=r"^several tasks cannot be pruned together: leave prune_gates out, or compile"):
        compile(
            {"a": routed, "b": routed},
            CompileOptions(prune_gates=0.1, calibration=arrays(routed, 5)),
            output=tmp_path / "b",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int8-static"])
def test_a_pruned_model_is_verified_and_its_bundle_says_what_went(precision: str, tmp_path: Path):
    model = spread(CodaConfig(reduction=2))
    given_ = arrays(model, 40, 50)
    bundle = compile(
        model, CompileOptions(precision=precision, calibration=given_, prune_gates=0.05), output=tmp_path / "b"
    )
    pruning = read_report(bundle.folder).pruning
    assert pruning is not None
    assert pruning.layers
    for one in pruning.layers:
        assert bundle.manifest.layers[one.layer].reduction == one.after != one.before == "2"
    assert f"{pruning.changed} of 2 answers changed, and logits by" in str(pruning)
    assert model.coda_config.reduction == 2  # the caller's stays as it is
    plain = compile(model, output=tmp_path / "plain")
    assert read_report(plain.folder).pruning is None
    if precision == "fp32":
        for text in given_:
            moved = np.abs(bundle.run(text)["logits"] - plain.run(text)["logits"]).max()
            assert moved <= pruning.moved + 1e-4


def test_the_command_says_what_it_pruned(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    save(spread(CodaConfig(reduction=2)), tmp_path / "model", tokenizer=tokenizer)
    (tmp_path / "texts.csv").write_text("text\n" + " ".join(f"w{i % 80}" for i in range(50)) + "\n")
    asked = ["compile", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--prune-gates", "0.1"]
    done = CliRunner().invoke(cli, [*asked, "--calibrate", str(tmp_path / "texts.csv")])
    assert done.exit_code == 0, done.output
    assert "  r raised in layer 0 (2 to " in done.output
    assert json.loads((tmp_path / "out" / "report.json").read_text())["pruning"]["threshold"] == 0.1
    for wrong, told in (
        (["--prune-gates", "1"], "0<x<1"),
        (["--precision", "auto", "--data", "x.csv"], "leave --prune"),
    ):
        done = CliRunner().invoke(cli, [*asked, *wrong])
        assert done.exit_code == 2
        assert told in done.output


def test_one_sentence_names_every_layer():
    layers = (PrunedLayer(0, "2", "61/20", 0.04), PrunedLayer(3, "8", "9", 0.012))
    assert str(Pruning(0.05, 128, 1, 0.0312, False, layers)) == (
        "r raised in layer 0 (2 to 3.05), 3 (8 to 9): gates of 0.04 at most lost their slots, 1 of 128 answers changed, "
        "and embeddings by 0.031 at most"
    )

"""The study on a handful of queries: every kind of source is trained, judged, compiled and timed, and nothing twice."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from tests.conftest import TINY, tiny_backbone
from tests.end_to_end.test_train_reviews import program
from transformers import PreTrainedTokenizerFast

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # other libraries', of which the study hears none
METHODS = ("houlsby", "lora", "coda r=1", "coda r=2")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = program("examples/clinc_study.py", monkeypatch)
    monkeypatch.setattr(module.clinc_methods, "EPOCHS", 1)
    monkeypatch.setattr(module, "ROUNDS", 4)
    monkeypatch.setattr(module, "LENGTHS", (8, 16))
    return module


@pytest.fixture
def arguments(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    backbone, data = tmp_path / "backbone", tmp_path / "queries.json"
    monkeypatch.setitem(TINY, "bert", {**TINY["bert"], "num_hidden_layers": 1})  # 24 graphs are exported
    tiny_backbone("bert").save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    queries = [(f"w{i % 30} w{i * 7 % 60} w{i * 11 % 80} w{i % 3}", f"intent{i % 3}") for i in range(180)]
    outside = [(f"w{i % 5} bad film", "oos") for i in range(12)]
    parts = {"train": queries[:120], "val": queries[120:150], "test": queries[150:], "oos_test": outside}
    data.write_text(json.dumps(parts))
    return ["--data", str(data), "--backbone", str(backbone), "--seeds", "5"]


def test_a_study_from_training_to_tables(study: ModuleType, arguments: list[str], tmp_path: Path):
    out = tmp_path / "study"
    command = [*arguments, "--out", str(out), "--methods", ",".join(METHODS)]
    done = CliRunner().invoke(study.main, command)
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"latency", *(f"{method}, seed 5" for method in METHODS)}
    for method in METHODS:
        found = results[f"{method}, seed 5"]
        assert set(found) == {"eager", "fp32", "int8", "parameters", "validation"}
        assert set(found["eager"]["scores"]) == {"msp", "energy", "maxlogit", "cosine", "mahalanobis"}
        assert found["fp32"]["same"] == 1.0
        for score, eager in found["eager"]["scores"].items():
            assert abs(found["fp32"]["scores"][score]["auroc"] - eager["auroc"]) < 0.02  # a pair or two of 360
        assert sum(f"| {method} |" in line for line in done.output.splitlines()) == 3
        assert found["parameters"] > 0
    latency = results["latency"]
    assert set(latency["queries"]) == {f"{m}, {kind}" for m in METHODS for kind in ("eager", "fp32", "int8")}
    assert [batch for batch, _ in latency["shapes"]] == [1, 30]
    assert all(value > 0 for times in latency["queries"].values() for value in times)
    assert "| coda r=2, int8 |" in done.output

    elsewhere = tmp_path / "elsewhere"  # with what was found and no model
    elsewhere.mkdir()
    shutil.copy(out / "results.json", elsewhere)
    again = CliRunner().invoke(study.main, [*arguments, "--out", str(elsewhere), "--methods", ",".join(METHODS)])
    assert again.exit_code == 0, again.output
    assert "training" not in again.output.split("|")[0]
    assert "judging" not in again.output
    assert [line for line in again.output.splitlines() if line.startswith("|")] == [
        line for line in done.output.splitlines() if line.startswith("|")
    ]


def test_an_unknown_method_names_the_known(study: ModuleType, arguments: list[str], tmp_path: Path):
    done = CliRunner().invoke(study.main, [*arguments, "--out", str(tmp_path), "--methods", "coda"])
    assert done.exit_code == 1
    assert "there is no method 'coda': use some of full fine-tuning, houlsby" in done.output

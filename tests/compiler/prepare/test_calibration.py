"""Texts to calibrate with: how they are read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.errors import CodaError, OptionError
from coda_compile.prepare import calibration
from coda_models import CodaConfig
from coda_targets.modalities.text import text_signature

TAKEN = text_signature(100, 6)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "texts.csv"
    path.parent.mkdir()
    path.write_text("text\n" + "\n".join(f"w{i}" for i in range(90)) + "\nw1 w2 w3 w4 w5 w6 w7 w8\n")
    return path


def test_a_file_is_read_text_by_text_and_cut_where_the_model_ends(file: Path, tokenizer: PreTrainedTokenizerFast):
    batches = list(calibration.inputs(file, tokenizer, TAKEN))
    assert [batch["input_ids"].shape for batch in batches] == [(1, 3)] * 90 + [(1, 6)]
    assert all(set(batch) == set(TAKEN.names) for batch in batches)
    assert all(bool(batch["attention_mask"].all()) for batch in batches)


def test_a_long_file_is_seen_from_end_to_end(
    file: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibration, "_MOST", 40)
    found = [int(batch["input_ids"][0, 1]) for batch in calibration.inputs(str(file), tokenizer, TAKEN)]
    words = [int(tokenizer(f"w{i}")["input_ids"][1]) for i in range(90)]
    assert found == [*words[::3], int(tokenizer("w1")["input_ids"][1])]


def test_arrays_are_taken_as_they_are():
    given = [{"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 3), np.int64), "other": np.ones(1)}]
    (found,) = calibration.inputs(given, None, TAKEN)
    assert {name: tensor.shape for name, tensor in found.items()} == dict.fromkeys(TAKEN.names, torch.Size([2, 3]))
    assert list(calibration.inputs(None, None, TAKEN)) == []


def test_stand_ins_of_layers_that_do_not_route_need_no_scales(tmp_path: Path):
    config = CodaConfig(reduction=(1, 2), attention="k_to_all", stand_in=4, key_value_rank=6)
    texts = [{"input_ids": np.arange(4, 37).reshape(3, 11), "attention_mask": np.ones((3, 11), np.int64)}]
    options = CompileOptions(precision="int8-static", calibration=texts)
    bundle = compile(tiny_coda("bert", config), options, output=tmp_path / "bundle")
    assert bundle.variant.operators["QuantizeLinear"] > 0


NEEDED = "^precision int8-static needs calibration data: give calibration$"


@pytest.mark.parametrize(
    ("precision", "name", "sentence"),
    [
        ("int8-static", None, NEEDED),
        ("int8", "texts.csv", "^precision int8 is not calibrated: leave calibration out$"),
        ("fp32", "texts.csv", "^precision fp32 is not calibrated: leave calibration out$"),
        ("int8-static", "texts.csv", "^this model has no tokenizer to read calibration with"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, file: Path, precision: str, name: str, sentence: str):
    wanted: dict[str, Any] = {"precision": precision, "calibration": name and file.parent / name}
    with pytest.raises(OptionError, match=sentence):
        compile(tiny_coda(), CompileOptions(**wanted), output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [file.parent]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "does not exist"), ("label\n1\n", "has no column 'text'"), ("text\n", "has no rows below its header")],
)
def test_a_file_that_is_not_as_described_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: str | None, sentence: str
):
    path = tmp_path / "texts.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CodaError, match=sentence):
        compile(
            tiny_coda(),
            CompileOptions(tokenizer=tokenizer, precision="int8-static", calibration=str(path)),
            output=tmp_path / "b",
        )
    assert not (tmp_path / "b").exists()


def test_several_tasks_are_refused(tmp_path: Path, file: Path):
    models = {name: tiny_coda("bert", CodaConfig(reduction=2)) for name in ("one", "two")}
    with pytest.raises(
        OptionError, match=r"^several tasks cannot share precision int8-static: compile each by itself$"
    ):
        compile(models, CompileOptions(precision="int8-static", calibration=file), output=tmp_path / "bundle")


def test_pairs_are_read_as_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    (tmp_path / "pairs.csv").write_text("text,text_pair\ngood,bad w1\n")
    taken = text_signature(100, 66, types=2)
    (found,) = calibration.inputs(tmp_path / "pairs.csv", tokenizer, taken)
    wanted = tokenizer("good", "bad w1", return_tensors="pt")
    assert wanted["token_type_ids"].sum() == 3
    assert all(torch.equal(found[name], wanted[name]) for name in taken.names)

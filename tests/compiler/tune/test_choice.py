"""Choosing by accuracy and latency: what is tried, what is taken, and what is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

import coda_compile.tune.choice
from coda_compile import CompileOptions, choose
from coda_compile.cli import choice_table
from coda_compile.errors import CodaError
from coda_compile.inspect.predict import predict
from coda_compile.tune.choice import Candidate, Choice, _around
from coda_models import CodaConfig
from coda_models.config import Reduction
from coda_ops import native
from coda_targets import Bundle

TEXTS = ["good film", "bad plot", "w1 w2 w3 w4 w5", "plot w7", "w9 good w11 bad", "film film film"]


@pytest.fixture(scope="module")
def labelled(compiled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, each with the label that the tiny model gives it."""
    path = tmp_path_factory.mktemp("data") / "data.csv"
    rows = (f"{text},{record['label']}" for text, record, _ in predict(compiled, TEXTS))
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def choose_tiny(
    data: Path, tokenizer: PreTrainedTokenizerFast | None, output: Path, budget: float = 0.5, **changes: Any
) -> Choice:
    options = CompileOptions(tokenizer=tokenizer, **changes)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    return choose(model, options, data=data, budget=budget, output=output, rounds=4, threads=1)


def made(*measured: tuple[int, float], budget: float = 0.0, compiled: Bundle) -> Choice:
    candidates = tuple(Candidate(str(i + 1), "fp32", right, 0, s, 1) for i, (right, s) in enumerate(measured))
    return Choice(compiled, candidates, candidates[0], None, 10, 5, budget)


def test_reference_loses_nothing_and_the_chosen_one_is_compiled(
    labelled: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(coda_compile.tune.choice, "_FACTORS", (Fraction(1), Fraction(2)))
    choice = choose_tiny(labelled, tokenizer, tmp_path / "bundle")
    reference = choice.candidates[0]
    assert (reference.reduction, reference.precision, reference.right) == ("2", "fp32", len(TEXTS))
    assert [(c.reduction, c.precision) for c in choice.candidates] == [
        (r, precision) for r in ("2", "4") for precision in ("fp32", "int8")
    ]
    assert all(c.right == c.same for c in choice.candidates)  # the labels are the reference's own answers
    assert choice.lost(choice.chosen) == 0
    assert choice.chosen.seconds == min(c.seconds for c in choice.candidates if c.right == len(TEXTS))
    chosen = Bundle(tmp_path / "bundle")
    assert {layer.reduction for layer in chosen.manifest.layers} == {choice.chosen.reduction}
    assert chosen.variant.precision == choice.chosen.precision
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert (choice.kernels is None) == (native.library() is None)
    assert bool(chosen.variant.session.kernels) == (choice.kernels is None or choice.kernels >= 1)


def test_with_texts_to_calibrate_with_static_activations_are_tried_too(
    labelled: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    changes = {"budget": 100.0, "reduction": "4", "calibration": labelled}
    choice = choose_tiny(labelled, tokenizer, tmp_path / "bundle", **changes)
    assert [c.precision for c in choice.candidates] == ["fp32", "int8", "int8-static"]
    assert Bundle(tmp_path / "bundle").variant.precision == choice.chosen.precision


def test_wide_budget_takes_the_fastest(labelled: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    choice = choose_tiny(labelled, tokenizer, tmp_path / "bundle", budget=100.0, reduction="4")
    assert {c.reduction for c in choice.candidates} == {"4"}
    assert choice.chosen.seconds == min(c.seconds for c in choice.candidates)


@pytest.mark.parametrize(
    ("trained", "tried"),
    [
        (4, [["4", "4"], ["2", "2"], ["6", "6"], ["8", "8"], ["12", "12"]]),
        (("1", "3"), [["1", "3"], ["1", "3/2"], ["1", "9/2"], ["1", "6"], ["1", "9"]]),
        (1, [["1", "1"]]),
    ],
)
def test_r_is_scaled_layer_by_layer(trained: Reduction, tried: list[list[str]]):
    model = tiny_coda("bert", CodaConfig(reduction=trained))
    assert _around(model) == [[Fraction(r) for r in each] for each in tried]


def test_front(compiled: Bundle):
    choice = made((9, 2.0), (8, 1.0), (7, 1.5), (9, 3.0), (9, 2.0), (10, 4.0), compiled=compiled)
    assert [choice.on_front(c) for c in choice.candidates] == [True, True, False, False, True, True]
    assert [round(choice.lost(c)) for c in choice.candidates] == [0, 10, 20, 0, 0, -10]


def test_table_says_why(compiled: Bundle, capsys: pytest.CaptureFixture[str]):
    choice_table.show(made((9, 0.002), (8, 0.001), budget=5, compiled=compiled))
    said = capsys.readouterr().out
    assert "80.00%" in said
    assert "over budget" in said
    assert "chosen: r=1 fp32, the fastest that loses at most 5 points; one text is 10" in said


def test_no_tokenizer(labelled: Path, tmp_path: Path):
    with pytest.raises(CodaError, match="it has no tokenizer: give a tokenizer"):
        choose_tiny(labelled, None, tmp_path / "bundle")


def test_bad_data_is_told_before_anything_is_compiled(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    (tmp_path / "data.csv").write_text("text,label\nfine,unheard\n")
    with pytest.raises(CodaError, match="has the label 'unheard'"):
        choose_tiny(tmp_path / "data.csv", tokenizer, tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["data.csv"]

"""Accuracy and separation, of a bundle and beside it of the model that it was made from."""

from pathlib import Path

import numpy as np
import pytest
from tests.compiler.prepare.test_fit_ood import some_texts, write
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.errors import CodaError
from coda_compile.inspect.evaluate import evaluate, separate
from coda_compile.sources.torch_model import TorchModel
from coda_models import CodaConfig, CodaModel
from coda_targets import Bundle


@pytest.fixture(scope="module")
def model() -> CodaModel:
    return tiny_coda("bert", CodaConfig(reduction=2))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    labelled = [(text, f"LABEL_{i % 3}") for i, text in enumerate(some_texts(150))]
    return {
        "known": write(folder / "known.csv", labelled),
        "data": write(folder / "data.csv", labelled[:40]),
        "outside": write(folder / "outside.csv", [(text, "other") for text in some_texts(30, seed=5)]),
    }


@pytest.fixture(scope="module")
def detecting(
    tmp_path_factory: pytest.TempPathFactory,
    model: CodaModel,
    tokenizer: PreTrainedTokenizerFast,
    files: dict[str, Path],
) -> Bundle:
    folder = tmp_path_factory.mktemp("detecting") / "bundle"
    return compile(model, CompileOptions(tokenizer=tokenizer, ood="cosine", ood_data=files["known"]), output=folder)


def test_both_sides_agree(
    detecting: Bundle, model: CodaModel, tokenizer: PreTrainedTokenizerFast, files: dict[str, Path]
):
    original = TorchModel("model in memory", model, tokenizer)
    ours, theirs = evaluate(detecting, files["data"], outside=files["outside"], original=original, known=files["known"])
    assert (ours.name, theirs.name) == ("bundle", "eager original")
    assert ours.accuracy == theirs.accuracy
    assert ours.same == theirs.same == 1.0
    assert ours.separation is not None
    assert theirs.separation is not None
    assert ours.separation.auroc == pytest.approx(theirs.separation.auroc, abs=1e-6)
    assert ours.flagged == theirs.flagged


def test_accuracy_alone(compiled: Bundle, files: dict[str, Path]):
    (only,) = evaluate(compiled, files["data"])
    assert 0 < only.accuracy < 1
    assert (only.separation, only.flagged) == (None, None)


def test_texts_without_a_score(compiled: Bundle, files: dict[str, Path]):
    with pytest.raises(CodaError, match="scores no texts: compile it with ood, or leave outside out"):
        evaluate(compiled, files["data"], outside=files["outside"])


def test_pairs_and_single_texts_are_not_told_apart(detecting: Bundle, files: dict[str, Path], tmp_path: Path):
    (tmp_path / "pairs.csv").write_text("text,text_pair\ngood,bad\n")
    with pytest.raises(CodaError, match=r"one holds pairs of texts and one does not: give both a text_pair"):
        evaluate(detecting, files["data"], outside=tmp_path / "pairs.csv")


def test_another_original(detecting: Bundle, tokenizer: PreTrainedTokenizerFast, files: dict[str, Path]):
    tagger = TorchModel("model in memory", tiny_coda("bert", CodaConfig(task="token-classification")), tokenizer)
    with pytest.raises(CodaError, match="was made from another model: it has other labels"):
        evaluate(detecting, files["data"], original=tagger)


def test_an_original_without_tokenizer(detecting: Bundle, model: CodaModel, files: dict[str, Path]):
    with pytest.raises(CodaError, match="the original has no tokenizer"):
        evaluate(detecting, files["data"], original=TorchModel("model in memory", model, None))


def test_separation_by_counting():
    """Of all pairs of a known and another text the share in which the other one scores higher, ties for half."""
    random = np.random.default_rng(0)
    known, others = random.integers(0, 10, 60).astype(float), random.integers(3, 14, 40).astype(float)
    found = separate(list(known), list(others))
    pairs = (others[:, None] > known).mean() + 0.5 * (others[:, None] == known).mean()
    assert found.auroc == pytest.approx(pairs)
    cut = max(t for t in np.unique(others) if (others >= t).mean() >= 0.95)
    assert found.fpr95 == pytest.approx((known >= cut).mean())
    assert separate([0.0, 1.0], [2.0, 3.0]) == separate([-5.0, 0.0], [0.5, 9.0])
    assert separate([0.0, 1.0], [2.0, 3.0]).aupr == 1.0


def test_the_rate_is_read_between_the_corners_of_a_curve():
    scores = [float(i) for i in range(20)]
    assert separate(scores, scores).fpr95 == 0.95  # a curve of corners alone has its next one at 1

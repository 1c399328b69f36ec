"""Detectors are fitted on known texts, compiled into the graph, and told apart from what they are not."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import WORDS, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.errors import CodaError, VerificationError
from coda_compile.inspect.predict import predict
from coda_compile.prepare import fit_ood
from coda_compile.verify.parity import Comparison, Tolerances
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig, CodaModel
from coda_models.ood import METHODS
from coda_targets import Bundle


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *rows])
    return path


def some_texts(n: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS[4:], k=drawn.randint(3, 12))) for _ in range(n)]


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = some_texts(150)
    return write(tmp_path_factory.mktemp("ood") / "known.csv", [(t, f"LABEL_{i % 3}") for i, t in enumerate(texts)])


@pytest.fixture
def model() -> CodaModel:
    return tiny_coda("bert", CodaConfig(reduction=2))


@pytest.mark.parametrize("method", METHODS)
def test_the_threshold_keeps_what_was_not_fitted(
    model: CodaModel, tokenizer: PreTrainedTokenizerFast, known: Path, method: str
):
    detector = fit_ood.fit(model, tokenizer, method, known)
    with torch.inference_mode():
        _, flags = detector(*fit_ood.embed(model, tokenizer, some_texts(150)))
    assert detector.method == method
    assert 1 <= int(flags.sum()) <= 150 * 0.12


@pytest.mark.parametrize("method", METHODS)
def test_fitting_is_repeatable(model: CodaModel, tokenizer: PreTrainedTokenizerFast, known: Path, method: str):
    first, second = (fit_ood.fit(model, tokenizer, method, known) for _ in "ab")
    assert first.threshold == second.threshold
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_order_of_embedding_does_not_matter(model: CodaModel, tokenizer: PreTrainedTokenizerFast):
    texts = some_texts(40)
    features, logits = fit_ood.embed(model, tokenizer, texts)
    alone = [fit_ood.embed(model, tokenizer, [text]) for text in texts]
    torch.testing.assert_close(features, torch.cat([pair[0] for pair in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, torch.cat([pair[1] for pair in alone]), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, known: Path) -> Bundle:
    folder = tmp_path_factory.mktemp("detecting") / "bundle"
    routed = tiny_coda("bert", CodaConfig(reduction=2))
    return compile(
        routed, CompileOptions(tokenizer=tokenizer, precision="int8", ood="mahalanobis", ood_data=known), output=folder
    )


def test_a_bundle_scores_and_flags(bundle: Bundle, known: Path):
    assert bundle.manifest.ood is not None
    assert (bundle.manifest.ood.method, bundle.manifest.ood.kept) == ("mahalanobis", 0.95)
    assert [(tensor.name, tensor.dtype) for tensor in bundle.manifest.outputs] == [
        ("logits", "float32"),
        ("ood_score", "float32"),
        ("is_ood", "bool"),
    ]
    records = [record for _, record, _ in predict(bundle, some_texts(60, seed=1))]
    assert all(record["is_ood"] == (record["ood_score"] > bundle.manifest.ood.threshold) for record in records)
    assert {record["is_ood"] for record in records} == {True, False}
    verify_bundle(bundle)


def test_a_dense_model_is_still_trimmed_to_its_readout(tokenizer: PreTrainedTokenizerFast, known: Path, tmp_path: Path):
    dense = tiny_coda("bert", CodaConfig(reduction=1))
    compile(dense, CompileOptions(tokenizer=tokenizer, ood="cosine", ood_data=known), output=tmp_path / "bundle")
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert {step["name"]: step["modified"] for step in report["variants"]["cpu"]["passes"]}["trim_to_readout"]


def test_flags_that_do_not_follow_from_scores_fail():
    comparison = Comparison("two texts", np.ones((2, 3), bool), Tolerances(), replayed=True)
    outputs = {"ood_score": np.array([1.0, 3.0], np.float32), "is_ood": np.array([False, True])}
    comparison.flags(outputs, 2.0)
    outputs["is_ood"] = np.array([False, False])
    with pytest.raises(VerificationError, match="is_ood of example 1 does not follow from its ood_score"):
        comparison.flags(outputs, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ood": "entropy"}, "score 'entropy' is unknown: use one of msp, energy, maxlogit, cosine, mahalanobis"),
        ({"ood_data": None}, "ood and ood_data go together"),
        ({"ood": None}, "ood and ood_data go together"),
        ({"tokenizer": None}, "this model has no tokenizer to read ood_data with"),
    ],
)
def test_what_cannot_be_fitted(
    model: CodaModel,
    tokenizer: PreTrainedTokenizerFast,
    known: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
):
    asked = {"ood": "energy", "ood_data": known, "tokenizer": tokenizer, **options}
    with pytest.raises(CodaError, match=message):
        compile(model, CompileOptions(**asked), output=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_other_tasks_have_no_score(tokenizer: PreTrainedTokenizerFast, known: Path, tmp_path: Path):
    tagger = tiny_coda("bert", CodaConfig(task="token-classification"))
    with pytest.raises(CodaError, match="are for sequence-classification, and this model does token-class"):
        compile(tagger, CompileOptions(tokenizer=tokenizer, ood="energy", ood_data=known), output=tmp_path / "bundle")


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_are_right_by_themselves_have_no_score(
    model: CodaModel, tokenizer: PreTrainedTokenizerFast, known: Path, method: str
):
    model.hf_config.problem_type = "multi_label_classification"
    said = "^out-of-distribution scores are for problem_type 'single_label_classification', and this model's is 'multi"
    with pytest.raises(CodaError, match=said):
        fit_ood.fit(model, tokenizer, method, known)


def test_pairs_are_known_as_pairs(model: CodaModel, tokenizer: PreTrainedTokenizerFast):
    firsts, seconds = some_texts(20), some_texts(20, seed=1)
    _, logits = fit_ood.embed(model, tokenizer, list(zip(firsts, seconds, strict=True)))
    with torch.inference_mode():
        wanted = [
            model(**tokenizer(a, b, truncation=True, max_length=66, return_tensors="pt")).logits[0]
            for a, b in zip(firsts, seconds, strict=True)
        ]
    torch.testing.assert_close(logits, torch.stack(wanted), atol=1e-5, rtol=1e-4)


Rows = list[tuple[str, str]]


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        ("energy", lambda: [("good", "LABEL_0")] * 19, "has 19 texts, and energy needs 20 or more to set a threshold"),
        ("cosine", lambda: [("good", "LABEL_0")] * 99, "has 99 texts, and cosine needs 100 or more"),
        (
            "mahalanobis",
            lambda: [(text, "LABEL_0") for text in some_texts(120)],
            "needs two or more texts of each of two or more classes",
        ),
        (
            "mahalanobis",
            lambda: [("good film", f"LABEL_{i % 2}") for i in range(120)],
            "their covariance is singular: use ood cosine",
        ),
        ("energy", lambda: [("good", "LABEL_7")] * 30, "has the label 'LABEL_7': this model knows LABEL_0, LABEL_1"),
    ],
)
def test_texts_that_do_not_suffice(
    model: CodaModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    method: str,
    rows: Callable[[], Rows],
    message: str,
):
    with pytest.raises(CodaError, match=message):
        fit_ood.fit(model, tokenizer, method, write(tmp_path / "known.csv", rows()))


def test_a_class_of_one_text(model: CodaModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    rows = [(text, "LABEL_0") for text in some_texts(120)]
    held_out = set(np.random.default_rng(0).permutation(120)[:24])
    first = next(i for i in range(120) if i not in held_out)
    rows[first] = (rows[first][0], "LABEL_1")
    with pytest.raises(CodaError, match="has 1 of 'LABEL_1' among 2: add some, or use ood cosine"):
        fit_ood.fit(model, tokenizer, "mahalanobis", write(tmp_path / "known.csv", rows))

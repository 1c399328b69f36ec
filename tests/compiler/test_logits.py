"""What logits mean: scores are those of transformers' pipelines, and of sentence-transformers' for cross-encoders."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.compiler.exports import write as write_onnx
from tests.conftest import TINY, WORDS, tiny_coda
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from coda_compile import CompileOptions, compile
from coda_compile.errors import CompileError
from coda_compile.inspect.predict import predict
from coda_compile.logits import logits_info
from coda_compile.sources.prompts import ABOUT
from coda_models import CodaConfig
from coda_models.errors import UnsupportedModelError
from coda_targets import Bundle
from coda_targets.errors import InputError
from coda_targets.manifest import LogitsInfo
from coda_targets.modalities.text import Text, scores

PAIRS: list[Text] = [
    ("good film", "bad plot w1"),
    ("w5", "w6 w7 w8 " * 40),
    ("w1 " * 40, "w2 w9"),
    ("w3 " * 60, "w4 " * 60),
]
EMPTY_TOO = [*PAIRS, ("film", "")]  # a pair to all but the pipeline, which then encodes one text
TEXTS: list[Text] = ["good film", "bad plot w1 w2", "w7"]
KINDS: list[dict[str, Any]] = [
    {"num_labels": 1},
    {"num_labels": 3},
    {"num_labels": 2, "problem_type": "regression"},
    {"num_labels": 3, "problem_type": "multi_label_classification"},
]


def model_of(auto: Any = AutoModelForSequenceClassification, family: str = "bert", **config: Any) -> PreTrainedModel:
    """A tiny one whose logits differ from text to text."""
    torch.manual_seed(3)
    model = auto.from_config(
        AutoConfig.for_model(
            family, vocab_size=len(WORDS), max_position_embeddings=66, pad_token_id=0, **TINY[family], **config
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25) if parameter.dim() > 1 else None
    return model.eval()


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(bundle: Bundle, texts: list[Text], **how: Any) -> list[dict[str, Any]]:
    return [record for _, record, _ in predict(bundle, texts, **how)]


def listed(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A record as the pipeline gives all labels."""
    found: list[dict[str, Any]] = record.get("labels", [record])
    return found


def of_pipeline(folder: Path, texts: list[Text]) -> list[list[dict[str, Any]]]:
    plain = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    return [classify(text, top_k=None, truncation=True, max_length=66) for text in plain]


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_as_the_pipeline_scores_texts_and_pairs(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: dict[str, Any]
):
    folder = saved(tmp_path / "model", model_of(**kind), tokenizer)
    bundle = compile(folder, output=tmp_path / "bundle")
    for texts in (TEXTS, PAIRS):
        for record, wanted in zip(answers(bundle, texts), of_pipeline(folder, texts), strict=True):
            shown = listed(record)
            assert len(shown) in (1, kind["num_labels"])
            assert_same(shown, wanted[: len(shown)])
    assert ("labels" in answers(bundle, TEXTS)[0]) == ("problem_type" in kind)


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("kind", [None, "regression", "multi_label_classification", "single_label_classification"])
@pytest.mark.parametrize("function", [None, "none", "sigmoid", "softmax"])
def test_as_the_pipeline_decides(
    tokenizer: PreTrainedTokenizerFast, labels: int, kind: str | None, function: str | None
):
    model = model_of(
        num_labels=labels, problem_type=kind, **({} if function is None else {"function_to_apply": function})
    )
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    logits = torch.tensor([[-0.5, 1.5, 2.5][:labels]])
    wanted = classify.postprocess({"logits": logits}, top_k=None, _legacy=False)
    info = logits_info("sequence-classification", model.config.to_dict(), labels, "x")
    assert info is not None
    found = scores(logits.numpy()[0], info.activation)
    assert sorted(found, reverse=True) == pytest.approx([one["score"] for one in wanted], abs=1e-6)
    if kind is not None:
        assert info.problem_type == kind


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_pairs_with_a_tokenizer_that_tells_no_types(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str):
    typeless = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
    )
    folder = saved(tmp_path / "model", model_of(family=family, num_labels=1), typeless)
    bundle = compile(folder, output=tmp_path / "bundle")
    longest = bundle.manifest.signature.max_length
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    for text, record in zip(PAIRS, answers(bundle, PAIRS), strict=True):
        given = {"text": text[0], "text_pair": text[1]}
        assert_same([record], classify(given, top_k=None, truncation=True, max_length=longest))


def test_tokens_have_a_softmax_whatever_the_problem_type(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = model_of(AutoModelForTokenClassification, num_labels=3, problem_type="multi_label_classification")
    folder = saved(tmp_path / "model", model, tokenizer)
    bundle = compile(folder, output=tmp_path / "bundle")
    tag = pipeline("token-classification", model=str(folder), device="cpu", ignore_labels=[])
    for text, record in zip(TEXTS, answers(bundle, TEXTS), strict=True):
        wanted = [{"label": one["entity"], "score": one["score"]} for one in tag(text)]
        assert_same(record["tokens"], wanted)


def cross_encoder(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", max_length=66)


def of_cross_encoder(folder: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a softmax without an axis
        found: np.ndarray = cross_encoder(folder).predict(EMPTY_TOO)
    return found.reshape(len(EMPTY_TOO), -1)


def assert_scores(bundle: Bundle, wanted: np.ndarray) -> None:
    for record, row in zip(answers(bundle, EMPTY_TOO), wanted, strict=True):
        by_label = {f"LABEL_{i}": value for i, value in enumerate(row)}
        shown = listed(record)
        assert len(shown) in (1, len(row))
        assert {one["label"]: one["score"] for one in shown} == pytest.approx(
            {one["label"]: by_label[one["label"]] for one in shown}, abs=1e-5
        )
        assert shown[0]["score"] == pytest.approx(row.max(), abs=1e-5)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("activation", [None, nn.Identity, nn.Sigmoid, nn.Softmax])
def test_as_a_cross_encoder_scores_pairs(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, activation: type[nn.Module] | None, labels: int
):
    from sentence_transformers import CrossEncoder

    plain = saved(tmp_path / "plain", model_of(num_labels=labels), tokenizer)
    chosen = {} if activation is None else {"activation_fn": activation()}
    CrossEncoder(str(plain), device="cpu", **chosen).save_pretrained(str(tmp_path / "model"))
    bundle = compile(tmp_path / "model", output=tmp_path / "bundle")
    assert_scores(bundle, of_cross_encoder(tmp_path / "model"))


def test_a_bundle_opens_as_a_cross_encoder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    from sentence_transformers import CrossEncoder

    plain = saved(tmp_path / "plain", model_of(num_labels=1), tokenizer)
    CrossEncoder(str(plain), device="cpu", activation_fn=nn.Identity()).save_pretrained(str(tmp_path / "model"))
    bundle = compile(tmp_path / "model", output=tmp_path / "bundle")
    opened = CrossEncoder(str(bundle.folder), device="cpu", backend="onnx", model_kwargs={"file_name": "model.onnx"})
    np.testing.assert_allclose(opened.predict(PAIRS), of_cross_encoder(tmp_path / "model")[: len(PAIRS), 0], atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}}, 1),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, 2),
        ({"sentence_transformers": {"version": "4.1.0"}}, 2),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, 3),
        (
            {
                "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
                "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
            },
            1,
        ),
    ],
)
def test_keys_of_older_releases(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, keys: dict[str, Any], labels: int):
    folder = saved(tmp_path / "model", model_of(num_labels=labels), tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    wanted = of_cross_encoder(folder)
    bundle = compile(folder, output=tmp_path / "bundle")
    assert_scores(bundle, wanted)
    graph = write_onnx(model_of(num_labels=labels), tmp_path / "graph", tokenizer=tokenizer)
    (graph.parent / "config.json").write_text(json.dumps(config | keys))
    assert_scores(compile(graph, output=tmp_path / "second"), wanted)


@pytest.mark.parametrize("path", ["torch.nn.modules.activation.Tanh", "os.system", 3])
@pytest.mark.parametrize("beside", [False, True])
def test_an_unknown_activation_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, path: object, beside: bool
):
    folder = saved(tmp_path / "model", model_of(num_labels=1), tokenizer)
    if beside:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"activation_fn": path}))
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"sentence_transformers": {"activation_fn": path}}))
    with pytest.raises(CompileError, match=f"applies the activation {path!r} to its logits, which is none of"):
        compile(folder, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_what_a_pipeline_puts_over_the_configuration_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = model_of(num_labels=3)
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(["good film"])[0]
    model.config.task_specific_params = {"text-classification": {"problem_type": "multi_label_classification"}}
    folder = saved(tmp_path / "model", model, tokenizer)
    put = pipeline("text-classification", model=str(folder), tokenizer=tokenizer, top_k=None)(["good film"])[0]
    assert {one["label"]: one["score"] for one in put} != {one["label"]: one["score"] for one in plain}
    with pytest.raises(
        CompileError, match="has task_specific_params {'problem_type': 'multi_label_classification'}, wh"
    ):
        compile(folder, output=tmp_path / "bundle")
    model.config.task_specific_params = {"summarization": {"length_penalty": 2.0}}
    assert compile(saved(tmp_path / "other", model, tokenizer), output=tmp_path / "bundle")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_of_a_cross_encoder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: str):
    folder = saved(tmp_path / "model", model_of(num_labels=1), tokenizer)
    (folder / "config_sentence_transformers.json").write_text(content)
    with pytest.raises(CompileError, match=r"config_sentence_transformers\.json is damaged"):
        compile(folder, output=tmp_path / "bundle")


def test_a_prompt_in_front_of_every_pair(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    from sentence_transformers import CrossEncoder

    plain = saved(tmp_path / "plain", model_of(num_labels=1), tokenizer)
    said = {"prompts": {"query": "w9 w8 "}, "default_prompt_name": "query"}
    CrossEncoder(str(plain), device="cpu", **said).save_pretrained(str(tmp_path / "model"))
    prompted = of_cross_encoder(tmp_path / "model")
    graph = write_onnx(model_of(num_labels=1), tmp_path / "graph", tokenizer=tokenizer)
    shutil.copy(tmp_path / "model" / ABOUT, graph.parent)
    for refused in (tmp_path / "model", graph):
        with pytest.raises(UnsupportedModelError, match="puts the prompt 'query' in front of every text"):
            compile(refused, output=tmp_path / "bundle")
    about = json.loads((tmp_path / "model" / ABOUT).read_text())
    (tmp_path / "model" / ABOUT).write_text(json.dumps({**about, "default_prompt_name": None}))
    wanted = of_cross_encoder(tmp_path / "model")
    assert np.abs(prompted - wanted).max() > 0.01
    assert_scores(compile(tmp_path / "model", output=tmp_path / "bundle"), wanted)


def test_a_graph_means_what_the_config_beside_it_says(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = model_of(num_labels=3, problem_type="multi_label_classification")
    folder = saved(tmp_path / "model", model, tokenizer)
    graph = write_onnx(model, tmp_path / "graph", tokenizer=tokenizer)
    (graph.parent / "config.json").write_bytes((folder / "config.json").read_bytes())
    bundle = compile(graph, output=tmp_path / "bundle")
    for record, wanted in zip(answers(bundle, PAIRS), of_pipeline(folder, PAIRS), strict=True):
        assert_same(record["labels"], wanted)
    config = json.loads((folder / "config.json").read_text())
    (graph.parent / "config.json").write_text(json.dumps(config | {"problem_type": "ranking"}))
    with pytest.raises(CompileError, match="problem_type 'ranking' of .* is unknown: use one of single_label_classif"):
        compile(graph, output=tmp_path / "bundle")


@pytest.mark.parametrize(("kind", "labels"), [("multi_label_classification", 3), (None, 1)])
def test_saturated_scores_stay_apart(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str | None, labels: int):
    model = model_of(num_labels=labels, problem_type=kind)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([20.0, 21.0, -800.0][:labels]))
    bundle = compile(saved(tmp_path / "model", model, tokenizer), output=tmp_path / "bundle")
    (raw,) = answers(bundle, ["good"], raw=True)
    logits = {one["label"]: one["logit"] for one in raw["logits"]}
    assert list(logits) == list(bundle.manifest.labels)
    assert list(logits.values()) == pytest.approx([20.0, 21.0, -800.0][:labels])
    found = [one["score"] for one in listed(answers(bundle, ["good"])[0])]
    exact = torch.tensor(sorted(logits.values(), reverse=True), dtype=torch.float64).sigmoid().tolist()
    assert found == pytest.approx(exact, rel=1e-12)
    assert len({*found, 1.0}) == labels + 1


def test_raw_logits_of_tokens_and_their_absence(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    tagger = tiny_coda("bert", CodaConfig(reduction=1, task="token-classification"))
    bundle = compile(tagger, CompileOptions(tokenizer=tokenizer), output=tmp_path / "tagger")
    (record,) = answers(bundle, ["good film"], raw=True)
    with torch.inference_mode():
        logits = tagger(**tokenizer("good film", return_tensors="pt")).logits[0, 1:-1]
    assert [[one["logit"] for one in token["logits"]] for token in record["tokens"]] == [
        pytest.approx(row.tolist(), abs=1e-4) for row in logits
    ]
    embedder = compile(
        tiny_coda("bert", CodaConfig(reduction=1, task="feature-extraction")),
        CompileOptions(tokenizer=tokenizer),
        output=tmp_path / "embedder",
    )
    assert embedder.manifest.logits is None
    with pytest.raises(InputError, match="raw logits are a classifier's, and this model does feature-extraction"):
        answers(embedder, ["good"], raw=True)


def test_several_tasks_each_mean_their_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    first, second = (tiny_coda("bert", CodaConfig(reduction=2)) for _ in range(2))
    second.hf_config.problem_type = "multi_label_classification"
    bundle = compile(
        {"topics": first, "flags": second}, CompileOptions(tokenizer=tokenizer), output=tmp_path / "bundle"
    )
    assert bundle.logits() == bundle.logits("topics") == LogitsInfo("softmax", "single_label_classification")
    assert bundle.logits("flags") == LogitsInfo("sigmoid", "multi_label_classification")
    (one,), (all_,) = (answers(bundle, ["good film"], task=task) for task in ("topics", "flags"))
    assert set(one) == {"label", "score"}
    assert len(all_["labels"]) == 3


def test_a_folder_that_says_nothing_of_cross_encoders_has_no_default_of_theirs():
    assert logits_info("sequence-classification", {}, 3, "x") == LogitsInfo("softmax", "single_label_classification")
    written = {"sbert_ce_default_activation_function": None}
    assert logits_info("sequence-classification", written, 3, "x") == logits_info("sequence-classification", {}, 3, "x")

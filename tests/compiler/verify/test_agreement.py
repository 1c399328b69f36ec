"""A bundle whose files have their SHA-256 and still contradict each other, or bring what no list names."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.compiler.verify.test_reference_vectors import accept
from tests.targets.test_manifest import edit
from transformers import AutoConfig

from coda_compile.verify.reference_vectors import verify_bundle
from coda_targets import Bundle, BundleError


def change_config(folder: Path, **fields: Any) -> None:
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, **fields}))


def test_labels_are_those_that_transformers_reads(compiled: Bundle):
    named = AutoConfig.from_pretrained(compiled.folder).id2label
    assert compiled.manifest.labels == tuple(named[i] for i in range(len(named)))
    verify_bundle(compiled)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {"0": "LABEL_1", "1": "LABEL_0", "2": "LABEL_2"}}, r"its manifest has the labels LABEL_0, .*"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, r"its config\.json LABEL_0, LABEL_1; compile again"),
        ({"architectures": ["BertForTokenClassification"]}, r"its manifest says sequence-classification, its config"),
        ({"architectures": ["BertModel"]}, r"its config\.json BertModel; compile the model again"),
        (
            {"problem_type": "multi_label_classification"},
            r"takes logits for single_label_classification by softmax, its config\.json for multi_label_.* by sigmoid",
        ),
        (
            {"max_position_embeddings": 8},
            r"allows \d+ tokens, and its config\.json says that the model has 8 positions",
        ),
    ],
)
def test_config_that_says_otherwise(copied: Path, fields: dict[str, Any], message: str):
    change_config(copied, **fields)
    with pytest.raises(BundleError, match=message):
        verify_bundle(accept(copied))


def test_labels_of_the_manifest_that_were_exchanged(copied: Path):
    edit(copied, labels=["LABEL_1", "LABEL_0", "LABEL_2"])
    with pytest.raises(BundleError, match=r"its manifest has the labels LABEL_1, LABEL_0, LABEL_2, its config"):
        verify_bundle(Bundle(copied))


def test_meaning_of_the_manifest_that_was_changed(copied: Path):
    edit(copied, logits={"activation": "sigmoid", "problem_type": "single_label_classification"})
    with pytest.raises(BundleError, match=r"its manifest takes logits for single_label_classification by sigmoid"):
        verify_bundle(Bundle(copied))


@pytest.mark.parametrize("tolerance", [1e9, float("inf"), float("nan"), -1])
def test_tolerances_that_prove_nothing(copied: Path, tolerance: float):
    expected = json.loads((copied / "expected.json").read_text())
    expected["tolerances"]["outputs"] = tolerance
    (copied / "expected.json").write_text(json.dumps(expected))
    with pytest.raises(BundleError, match="their tolerances would prove nothing|is not JSON"):
        verify_bundle(accept(copied))


@pytest.mark.parametrize("content", ["[]", "no JSON"])
def test_config_that_is_none(copied: Path, content: str):
    (copied / "config.json").write_text(content)
    with pytest.raises(BundleError, match=r"config\.json is damaged: compile the model again"):
        verify_bundle(accept(copied))


def test_empty_list_of_files(copied: Path):
    edit(copied, files=[])
    with pytest.raises(BundleError, match=r"does not list model\.onnx; compile the model again"):
        Bundle(copied)


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "config.json", "tokenizer.json", "expected.json", "test_data_set_0/input_0.pb", "report.json"],
)
def test_file_that_is_there_and_not_listed(copied: Path, name: str):
    files = json.loads((copied / "coda.json").read_text())["files"]
    edit(copied, files=[file for file in files if file["path"] != name])
    with pytest.raises(BundleError, match=rf"{name}"):
        verify_bundle(Bundle(copied))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "modeling.py", "modules.json", "adapters/x.onnx_adapter", "test_data_set_0/input_7.pb"],
)
def test_file_that_some_reader_would_use(copied: Path, name: str):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("{}")
    with pytest.raises(BundleError, match=rf"{name} is not in the manifest, so nothing proves it: move it away"):
        verify_bundle(Bundle(copied))


@pytest.mark.parametrize("name", [".gitattributes", "README.md", "LICENSE", ".cache/huggingface/x", ".git/config"])
def test_file_that_no_reader_uses(copied: Path, name: str):
    """What the hub, git and huggingface_hub put beside a model."""
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_text("")
    verify_bundle(Bundle(copied))


def test_weights_in_a_file_that_nothing_lists(copied: Path):
    model = onnx.load(str(copied / "model.onnx"))
    accept(copied)
    onnx.save_model(model, copied / "model.onnx", save_as_external_data=True, location=".weights", size_threshold=0)
    files = json.loads((accept(copied).folder / "coda.json").read_text())["files"]
    edit(copied, files=[file for file in files if file["path"] != ".weights"])
    with pytest.raises(BundleError, match=r"model.onnx has weights in \.weights, which its manifest does not list"):
        verify_bundle(Bundle(copied))


def test_inputs_of_the_manifest_that_the_model_does_not_take(copied: Path):
    edit(copied, signature=asdict(Bundle(copied).manifest.signature.without("types")))
    with pytest.raises(
        BundleError, match=r"inputs input_ids, attention_mask, model.onnx has input_ids, attention_mask, token"
    ):
        verify_bundle(Bundle(copied))

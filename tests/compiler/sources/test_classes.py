"""What logits stand for reaches a bundle as its source says it, or its user."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
from tests.compiler.exports import write
from tests.compiler.sources.test_peft import adapted
from tests.conftest import tiny_backbone
from tests.json_files import edit
from transformers import PreTrainedTokenizerFast, pipeline

from coda_compile import CompileOptions, compile
from coda_compile.errors import CompileError, OptionError
from coda_compile.sources import read_source
from coda_models.errors import BackboneError
from coda_targets import Bundle

NAMES = {0: "toxic", 1: "spam", 2: "rude"}
SEVERAL = "multi_label_classification"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    adapted(tmp_path / "peft", peft.LoraConfig(task_type="SEQ_CLS", r=2))
    return tmp_path / "peft"


def said(bundle: Bundle) -> tuple[str | None, tuple[str, ...], dict[str, str]]:
    """The problem type, the manifest's labels, and those that pipelines over the bundle read."""
    config = json.loads((bundle.folder / "config.json").read_text())
    return config.get("problem_type"), bundle.manifest.labels, config["id2label"]


ALL = (SEVERAL, tuple(NAMES.values()), {str(i): name for i, name in NAMES.items()})


def test_the_whole_models_configuration_beside_an_adapter(lora: Path, tmp_path: Path):
    config = tiny_backbone("bert").config
    config.problem_type, config.id2label = SEVERAL, NAMES
    config.save_pretrained(lora)
    assert said(compile(lora, output=tmp_path / "bundle")) == ALL


def test_the_bases_configuration(lora: Path, tmp_path: Path):
    edit(tmp_path / "peft-base" / "config.json", problem_type=SEVERAL, id2label=NAMES)
    assert said(compile(lora, output=tmp_path / "bundle")) == ALL


def test_a_base_with_another_head_says_nothing_of_the_adapters(tmp_path: Path):
    """Its emotions are no answer to the adapter's question."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2)
    eager = adapted(tmp_path / "peft", config)
    body = eager.unload().bert
    body.config.problem_type, body.config.num_labels = SEVERAL, 28
    body.save_pretrained(tmp_path / "peft-base")
    read = read_source(tmp_path / "peft").model.hf_config
    assert read.problem_type is None
    assert read.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, "names classes 0, 1 where the logits have 0 to 2: let its id2label na"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "names classes 1, 2, 3 where the logits have 0 to 2: let its"),
        ({"id2label": {}}, "names no classes where the logits have 0 to 2: let its id2label name each"),
        ({"id2label": {str(i): "x" for i in range(9)}}, "names classes 0, 1, 2, 3, 4, 5, 6, 7 and more where the"),
        ({"id2label": {"zero": "no"}}, "is damaged: its id2label should name classes by their numbers"),
        ({"id2label": 3}, "is damaged: its id2label should name classes by their numbers"),
        ({"problem_type": "several"}, "problem_type 'several' of .* is unknown: use one of single_label_class"),
        ([], "is damaged: it should be a Hugging Face configuration"),
    ],
)
def test_a_configuration_that_does_not_fit(lora: Path, content: Any, message: str):
    (lora / "config.json").write_text(json.dumps(content))
    with pytest.raises(CompileError, match=message):
        read_source(lora)


def test_what_the_user_says_comes_first(lora: Path, tmp_path: Path):
    edit(tmp_path / "peft-base" / "config.json", problem_type="regression")
    assert (
        said(
            compile(lora, CompileOptions(problem_type=SEVERAL, labels=list(NAMES.values())), output=tmp_path / "bundle")
        )
        == ALL
    )


def test_of_an_onnx_file(tmp_path: Path):
    path = write(tiny_backbone("bert"), tmp_path / "graph")
    labels = list(NAMES.values())
    assert said(compile(path, CompileOptions(problem_type=SEVERAL, labels=labels), output=tmp_path / "bundle")) == ALL
    with pytest.raises(OptionError, match="labels names 2 classes but this model tells 3 apart"):
        compile(path, CompileOptions(labels=["no", "yes"]), output=tmp_path / "other")


@pytest.mark.parametrize("numbers", ["123", "015"])
def test_classes_that_are_numbered_otherwise(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, numbers: str):
    """transformers' pipeline finds no name for some logit."""
    folder, named = tmp_path / "model", dict(zip(numbers, NAMES.values(), strict=True))
    model = tiny_backbone("bert")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit(folder / "config.json", id2label=named, label2id={name: int(i) for i, name in named.items()})
    with pytest.raises(KeyError):
        pipeline("text-classification", model=str(folder), device="cpu")("good film", top_k=None)
    graph = write(model, tmp_path / "graph")
    shutil.copy(folder / "config.json", graph.parent)
    message = f"config.json names classes {', '.join(numbers)} where the logits have 0 to 2: let its id2label name each"
    for refused in (folder, graph):
        with pytest.raises(CompileError, match=message):
            compile(refused, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert compile(folder, CompileOptions(labels=["a", "b", "c"]), output=tmp_path / "bundle").manifest.labels == (
        "a",
        "b",
        "c",
    )


@pytest.mark.parametrize("named", [None, {"0": "no", "1": "yes"}, dict(enumerate("abcd"))], ids=str)
def test_another_number_of_classes_than_the_weights(tmp_path: Path, named: dict[str, str] | None):
    tiny_backbone("bert").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", id2label=named)
    with pytest.raises(
        BackboneError, match=r"a head has one row for each class in id2label: size mismatch for .*\[3\b"
    ):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("sequence-classification", {"problem_type": "several"}, "^problem_type 'several' is unknown"),
        ("token-classification", {"problem_type": SEVERAL}, "^problem_type is for sequence-classification, and this"),
        (
            "feature-extraction",
            {"labels": ["a"]},
            "^labels name the classes of a classifier, and this model does feat",
        ),
        ("sequence-classification", {"labels": ["no", "yes"]}, "^labels names 2 classes but this model tells 3 apart"),
        ("token-classification", {"labels": ["a", "b", "b"]}, "^labels needs a name of its own for each class"),
        ("token-classification", {"labels": ["a", "b", ""]}, "^labels needs a name of its own for each class"),
    ],
)
def test_what_a_model_cannot_mean(tmp_path: Path, task: str, options: dict[str, Any], message: str):
    tiny_backbone("bert", task).save_pretrained(tmp_path / "model")
    with pytest.raises(OptionError, match=message):
        compile(tmp_path / "model", CompileOptions(**options), output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_of_several_models_each_says_it_itself(lora: Path, tmp_path: Path):
    with pytest.raises(OptionError, match="problem_type and labels are one model's: set them in each model before"):
        compile({"a": lora, "b": lora}, CompileOptions(problem_type=SEVERAL), output=tmp_path / "bundle")

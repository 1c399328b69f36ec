"""Prediction heads of the adapters library, and what they say of their classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import pytest
import torch
from adapters.composition import Stack
from safetensors.torch import load_file, save_file
from tests.compiler.sources.library_adapters import CONFIGS, SEVERAL, library_model, randomise, saved
from tests.compiler.sources.test_peft import same
from tests.conftest import tiny_backbone
from tests.json_files import edit

from coda_compile.sources import read_source
from coda_models.errors import BackboneError, CheckpointError, UnsupportedModelError

HEADS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "one layer": ("sequence-classification", lambda m: m.add_classification_head("task", num_labels=2, layers=1)),
    "with the pooler": ("sequence-classification", lambda m: m.add_classification_head("task", use_pooler=True)),
    "several labels": ("sequence-classification", lambda m: m.add_classification_head("task", multilabel=True)),
    "tags": ("token-classification", lambda m: m.add_tagging_head("task", num_labels=4)),
    "none": ("feature-extraction", lambda m: None),
}


@pytest.mark.parametrize("head", list(HEADS))
def test_heads(tmp_path: Path, head: str):
    task, add = HEADS[head]
    same(tmp_path / "task", saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=add))
    assert read_source(tmp_path / "task").model.coda_config.task == task


def test_a_head_reads_no_pooler_that_its_base_does_not_have(tmp_path: Path):
    """The library fills it at random, anew in each process."""
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=HEADS["with the pooler"][1])
    path = tmp_path / "task-base" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("pooler.")}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"task-base lack 'pooler\.dense\.bias'"):
        read_source(tmp_path / "task")


@pytest.mark.parametrize(
    ("add", "problem_type"),
    [
        (lambda m: m.add_classification_head("task", num_labels=3), "single_label_classification"),
        (lambda m: m.add_classification_head("task", num_labels=3, multilabel=True), "multi_label_classification"),
        (lambda m: m.add_classification_head("task", num_labels=1), "regression"),
        (lambda m: m.add_tagging_head("task", num_labels=4), None),
    ],
)
def test_what_a_head_is_for(tmp_path: Path, add: Callable[[Any], None], problem_type: str | None):
    """As the library's own loss has it; what the base's configuration says of another head is no answer."""
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=add)
    edit(tmp_path / "task-base" / "config.json", problem_type="regression" if problem_type is None else SEVERAL)
    found = read_source(tmp_path / "task").model.hf_config
    assert found.problem_type == problem_type
    assert list(found.id2label.values()) == [f"LABEL_{i}" for i in range(found.num_labels)]


def test_a_head_that_does_not_name_its_classes(tmp_path: Path):
    saved(tmp_path / "task", CONFIGS["Pfeiffer"])
    path = tmp_path / "task" / "head_config.json"
    head = json.loads(path.read_text())
    edit(path, config={**head["config"], "label2id": {"bad": 0, "good": 1}})
    with pytest.raises(CheckpointError, match="does not name each of its 3 classes once"):
        read_source(tmp_path / "task")


def test_labels(tmp_path: Path):
    names = {0: "bad", 1: "good"}
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=lambda m: m.add_classification_head("task", id2label=names))
    assert read_source(tmp_path / "task").model.hf_config.id2label == names


def test_static_heads(tmp_path: Path):
    """A plain classifier that adapters.init changed saves its head as well."""
    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapters.init(model)
    model.add_adapter("task", config=CONFIGS["Houlsby"])
    model.active_adapters = "task"
    randomise(model)
    (tmp_path / "task").mkdir()
    model.eval().save_adapter(str(tmp_path / "task"), "task", with_head=True)
    same(tmp_path / "task", model)
    assert read_source(tmp_path / "task").model.hf_config.problem_type is None
    edit(tmp_path / "base" / "config.json", problem_type=SEVERAL)
    assert read_source(tmp_path / "task").model.hf_config.problem_type == SEVERAL
    model.config.problem_type = "single_label_classification"
    model.config.save_pretrained(tmp_path / "task")
    assert read_source(tmp_path / "task").model.hf_config.problem_type == "single_label_classification"


def two_heads(folder: Path, head_setup: Any) -> Any:
    """A stack whose lower adapter alone has a head, and one more head that belongs to none; saved with a head setup."""
    folder.mkdir()
    model = library_model(folder.with_name(f"{folder.name}-base"))
    for name in ("lower", "upper"):
        model.add_adapter(name, config=CONFIGS["Pfeiffer"])
    model.add_classification_head("lower", num_labels=3)
    model.add_tagging_head("other", num_labels=4)
    model.active_adapters = Stack("lower", "upper")
    randomise(model)
    model.eval().save_adapter_setup(str(folder), model.active_adapters, head_setup=head_setup)
    return model


@pytest.mark.parametrize("setup", ["lower", "other", ["other"]])
def test_the_head_that_a_setup_asks_for(tmp_path: Path, setup: Any):
    """As load_adapter_setup of the library activates it."""
    eager = two_heads(tmp_path / "stack", setup)
    eager.active_head = setup
    same(tmp_path / "stack", eager)
    task = "sequence-classification" if setup == "lower" else "token-classification"
    assert read_source(tmp_path / "stack").model.coda_config.task == task


def test_a_setup_that_asks_for_no_head_gives_states(tmp_path: Path):
    two_heads(tmp_path / "stack", None)
    assert read_source(tmp_path / "stack").model.coda_config.task == "feature-extraction"


def test_the_head_of_a_class_that_brings_it(tmp_path: Path):
    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    from transformers import AutoModelForSequenceClassification

    eager = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapters.init(eager)
    eager.add_adapter("task", config=CONFIGS["Pfeiffer"])
    eager.active_adapters = Stack("task")
    randomise(eager)
    (tmp_path / "stack").mkdir()
    eager.eval().save_adapter_setup(str(tmp_path / "stack"), Stack("task"), head_setup=True)
    same(tmp_path / "stack", eager)


@pytest.mark.parametrize("setup", [["lower", "other"], Stack("lower", "other")])
def test_several_heads_are_refused(tmp_path: Path, setup: Any):
    two_heads(tmp_path / "stack", setup)
    with pytest.raises(UnsupportedModelError, match="the head_setup .* cannot be compiled: a bundle has one head"):
        read_source(tmp_path / "stack")


def test_a_head_that_is_not_there_or_not_whole(tmp_path: Path):
    two_heads(tmp_path / "stack", "other")
    path = tmp_path / "stack" / "other" / "pytorch_model_head.bin"
    whole = torch.load(path, weights_only=True)
    torch.save({name: tensor for name, tensor in whole.items() if not name.endswith("bias")}, path)
    with pytest.raises(CheckpointError, match=r"the weights in .*other lack 'heads\.other.*bias', or have it beyond"):
        read_source(tmp_path / "stack")
    for setup in ("../stack-base", "absent"):
        edit(tmp_path / "stack" / "adapter_setup.json", head_setup=setup)
        with pytest.raises((CheckpointError, UnsupportedModelError), match="cannot be (read|compiled)"):
            read_source(tmp_path / "stack")


def test_heads_without_a_compiled_form(tmp_path: Path):
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=lambda m: m.add_qa_head("task"))
    with pytest.raises(UnsupportedModelError, match="a head of type 'question_answering' is not supported: use one of"):
        read_source(tmp_path / "task")

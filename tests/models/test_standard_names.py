"""Tensors that a standard class leaves out are known to be no part of it, or refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_backbone
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
)

from coda_models.backbone import AUTO_CLASSES, load_backbone
from coda_models.errors import BackboneError
from coda_models.standard_names import strange_names

OTHERS = {
    "pre-training": AutoModelForPreTraining,
    "masked tokens": AutoModelForMaskedLM,
    "questions": AutoModelForQuestionAnswering,
    "choices": AutoModelForMultipleChoice,
    **AUTO_CLASSES,
}


def add(folder: Path, *names: str) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **{name: torch.ones(3) for name in names}}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("head", list(OTHERS))
def test_heads_of_other_tasks_are_no_part_of_an_encoder(family: str, head: str, tmp_path: Path):
    config = tiny_backbone(family).config
    config.num_labels = 1 if head == "choices" else 2  # heads of one name and another width are told apart by that
    if type(config) not in OTHERS[head]._model_mapping:
        pytest.skip("transformers has no such class of this family")
    OTHERS[head].from_config(config).save_pretrained(tmp_path)
    for task in AUTO_CLASSES:
        load_backbone(tmp_path, task)


def test_buffers_of_older_releases_are_no_part_of_it(tmp_path: Path):
    tiny_backbone("bert").save_pretrained(tmp_path)
    add(tmp_path, "bert.embeddings.position_ids")
    load_backbone(tmp_path, "sequence-classification", trained=True)
    load_backbone(tmp_path, "feature-extraction", trained=True)


@pytest.mark.parametrize("task", list(AUTO_CLASSES))
@pytest.mark.parametrize(
    "name",
    [
        "deep.weight",
        "bert.deep.weight",
        "classifier.dense.weight",
        "heads.task.1.weight",
        "bert.encoder.layer.2.output.dense.weight",
        "bert.encoder.layer.0.output.adapters.task.adapter_up.weight",
        "bert.encoder.layer.0.attention.self.query.lora_A.default.weight",
        "bert.prefix_tuning.prefix_tunings.task.wte.weight",
    ],
)
def test_others_are_refused_by_name(tmp_path: Path, name: str, task: str):
    tiny_backbone("bert").save_pretrained(tmp_path)
    add(tmp_path, name)
    with pytest.raises(
        BackboneError, match=rf"hold '(bert\.)?{name.removeprefix('bert.')}', for which Bert.* no place"
    ):
        load_backbone(tmp_path, task)


def test_more_layers_than_the_configuration_says(family: str, tmp_path: Path):
    tiny_backbone(family).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = "n_layers" if family == "distilbert" else "num_hidden_layers"
    (tmp_path / "config.json").write_text(json.dumps({**config, layers: 1}))
    with pytest.raises(
        BackboneError, match=r"hold '.*layers?\.1\..*', for which .* as config\.json describes it has no"
    ):
        load_backbone(tmp_path, "sequence-classification")


def test_looking_draws_nothing_from_the_random_state():
    config = tiny_backbone("bert").config
    before = torch.get_rng_state()
    assert strange_names(["pooler.dense.weight", "own"], config) == ["own"]
    assert torch.equal(torch.get_rng_state(), before)

"""Folders that PEFT saves in less common ways: what is read computes what PEFT's own model does."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.compiler.sources.test_peft import adapted, answers, same, texts
from tests.conftest import tiny_backbone
from tests.json_files import edit
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from coda_compile.errors import CompileError
from coda_compile.sources import read_source
from coda_models.errors import BackboneError, UnsupportedModelError

LORA: dict[str, Any] = {"r": 4, "target_modules": ["query", "value"], "init_lora_weights": False}
HEAD = {"modules_to_save": ["classifier"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(base: Path, folder: Path, model: PreTrainedModel | None = None, **options: Any) -> peft.PeftModel:
    """A LoRA with a head that is its own, saved."""
    model = model or AutoModelForSequenceClassification.from_pretrained(base)
    torch.manual_seed(1)
    settings = {"task_type": "SEQ_CLS", **LORA, **options.pop("settings", {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it saves embeddings
        found = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        torch.nn.init.normal_(next(p for n, p in found.named_parameters() if "classifier.modules_to_save" in n))
        found.save_pretrained(folder, **options)
    return found


def close(folder: Path, eager: Any, ids: torch.Tensor, **options: Any) -> None:
    mask = torch.ones_like(ids)
    seen = answers(read_source(folder, **options).model, ids, mask)
    torch.testing.assert_close(seen, answers(eager, ids, mask), atol=1e-5, rtol=1e-5)


def test_embeddings_of_tokens_that_were_added(base: Path, tmp_path: Path):
    """PEFT saves them; its users resize the base model before they load."""
    model = AutoModelForSequenceClassification.from_pretrained(base)
    rows = model.config.vocab_size
    torch.manual_seed(0)
    model.resize_token_embeddings(rows + 2)
    eager = trained(base, tmp_path / "peft", model)
    ids = torch.tensor([[5, rows, 7, rows + 1]])
    close(tmp_path / "peft", eager, ids)
    assert read_source(tmp_path / "peft").model.signature.lead.size == rows + 2
    resized = AutoModelForSequenceClassification.from_pretrained(base)
    resized.resize_token_embeddings(rows + 2)
    resized.save_pretrained(tmp_path / "resized")
    close(tmp_path / "peft", eager, ids, backbone=str(tmp_path / "resized"))


def test_embeddings_that_were_saved_as_they_are(base: Path, tmp_path: Path):
    same(tmp_path / "peft", trained(base, tmp_path / "peft", save_embedding_layers=True))


def test_a_head_of_more_classes_than_the_base_model_s(base: Path, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=5, ignore_mismatched_sizes=True)
    eager = trained(base, tmp_path / "peft", model)
    assert read_source(tmp_path / "peft").model.hf_config.num_labels == 5
    same(tmp_path / "peft", eager)


def test_other_shapes_that_the_adapter_does_not_bring_are_refused(base: Path, tmp_path: Path):
    trained(base, tmp_path / "peft")
    edit(base / "config.json", intermediate_size=40)
    with pytest.raises(
        BackboneError, match=r"hold 'bert.encoder.+' of another shape than its config.json describes: save"
    ):
        read_source(tmp_path / "peft")


def test_the_class_says_the_task_where_the_configuration_leaves_it_open(base: Path, tmp_path: Path):
    eager = trained(base, tmp_path / "peft", settings={"task_type": None, **HEAD})
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] is None
    same(tmp_path / "peft", eager)
    tagger = AutoModelForTokenClassification.from_pretrained(base)
    same(tmp_path / "tags", trained(base, tmp_path / "tags", tagger, settings={"task_type": None, **HEAD}))


def test_the_base_model_says_the_task_of_what_transformers_saved(base: Path, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    model.add_adapter(peft.LoraConfig(**LORA, **HEAD))
    model.save_pretrained(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["auto_mapping"] is None
    ids, _ = texts(1, 17)
    close(tmp_path / "peft", model, ids)
    edit(base / "config.json", architectures=["BertModel"])
    with pytest.raises(
        UnsupportedModelError, match=r"task_type of .* is null, and neither its auto_mapping nor a conf"
    ):
        read_source(tmp_path / "peft")
    (tmp_path / "peft" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    close(tmp_path / "peft", model, ids)


def test_a_base_model_that_returns_tuples(base: Path, tmp_path: Path):
    eager = trained(base, tmp_path / "peft")
    edit(base / "config.json", return_dict=False)
    same(tmp_path / "peft", eager)


def test_adapters_with_names_of_their_own(base: Path, tmp_path: Path):
    model = peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base), peft.LoraConfig(task_type="SEQ_CLS", **LORA)
    ).eval()
    model.add_adapter("two", peft.LoraConfig(task_type="SEQ_CLS", **LORA))
    model.save_pretrained(tmp_path / "one", selected_adapters=["two"])
    model.set_adapter("two")
    same(tmp_path / "one", model)
    model.add_adapter("three", peft.LoraConfig(task_type="SEQ_CLS", **LORA))
    model.save_pretrained(tmp_path / "several", selected_adapters=["two", "three"])
    with pytest.raises(
        CompileError, match=r"holds several adapters: give the folder of one of them \(.*three, .*two\)"
    ):
        read_source(tmp_path / "several")


def test_a_task_that_nobody_knows_stays_refused(tmp_path: Path):
    adapted(tmp_path / "peft", peft.LoraConfig(task_type="SEQ_CLS", **LORA))
    edit(tmp_path / "peft" / "adapter_config.json", task_type="")
    with pytest.raises(UnsupportedModelError, match="task_type '' of"):
        read_source(tmp_path / "peft")

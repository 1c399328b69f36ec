"""What can be compiled is recognised by what lies on disk; what cannot is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_backbone, tiny_coda
from tests.json_files import edit
from transformers import AutoConfig, PreTrainedTokenizerFast

from coda_compile.errors import CompileError, OptionError
from coda_compile.sources import read_source, read_tokenizer
from coda_models import CodaConfig, save, save_pretrained
from coda_models.backbone import build_backbone
from coda_models.errors import BackboneError, CheckpointError, UnsupportedModelError
from coda_ops.errors import CodaError
from coda_targets import Bundle


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    tiny_backbone("bert").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_checkpoint_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    save(tiny_coda("bert", CodaConfig(reduction=3)), tmp_path / "model.pt", tokenizer=tokenizer)
    source = read_source(tmp_path / "model.pt")
    assert source.kind == "CoDA checkpoint"
    assert source.model.coda_config.reduction == 3
    assert source.tokenizer is not None
    assert not source.model.training


def test_checkpoint_folder(tmp_path: Path):
    save_pretrained(tiny_coda("mpnet"), tmp_path / "folder")
    source = read_source(tmp_path / "folder")
    assert (source.kind, source.tokenizer) == ("CoDA checkpoint", None)


def test_hugging_face_folder(hugging_face: Path):
    source = read_source(hugging_face)
    assert (source.kind, source.tokenizer) == ("Hugging Face model", None)
    assert all(layer.router is None and layer.adapter is None for layer in source.model.coda_layers())
    ids = torch.arange(4, 15).unsqueeze(0)
    with torch.inference_mode():
        expected = tiny_backbone("bert")(ids).logits
        torch.testing.assert_close(source.model(input_ids=ids).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("task", "architecture"),
    [("token-classification", "RobertaForTokenClassification"), ("feature-extraction", "RobertaModel")],
)
def test_task_follows_the_head(tmp_path: Path, task: str, architecture: str):
    tiny_backbone("roberta", task).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    assert read_source(tmp_path).model.coda_config.task == task


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_names_of_a_wrapped_module(hugging_face: Path, prefix: str, suffix: str):
    """As torch's DistributedDataParallel and compile leave them."""
    expected = read_source(hugging_face).model.state_dict()
    tensors = {prefix + name: tensor for name, tensor in load_file(hugging_face / "model.safetensors").items()}
    if suffix == ".bin":
        (hugging_face / "model.safetensors").unlink()
        torch.save(tensors, hugging_face / "pytorch_model.bin")
    else:
        save_file(tensors, hugging_face / "model.safetensors", metadata={"format": "pt"})
    found = read_source(hugging_face).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_wrapped_part(hugging_face: Path):
    expected = read_source(hugging_face).model.state_dict()
    tensors = load_file(hugging_face / "model.safetensors")
    wrapped = {name.replace("bert.encoder.", "bert.encoder._orig_mod."): tensor for name, tensor in tensors.items()}
    save_file(wrapped, hugging_face / "model.safetensors", metadata={"format": "pt"})
    found = read_source(hugging_face).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("named", [None, [], [""]])
def test_nothing_says_what_a_model_is_for(hugging_face: Path, named: list[str] | None):
    edit(hugging_face / "config.json", architectures=named)
    with pytest.raises(
        UnsupportedModelError, match=r"config.json names no architectures, so nothing says what the model"
    ):
        read_source(hugging_face)


def test_masked_language_model_gives_features(tmp_path: Path):
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_config(tiny_backbone("bert").config).save_pretrained(tmp_path)
    assert read_source(tmp_path).model.coda_config.task == "feature-extraction"


@pytest.mark.parametrize(
    ("mode", "pooling"), [("pooling_mode_cls_token", "first"), ("pooling_mode_mean_tokens", "mean")]
)
def test_pooling_of_sentence_transformers(tmp_path: Path, mode: str, pooling: str):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    assert read_source(tmp_path).model.coda_config.pooling == pooling


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_pooling(tmp_path: Path, text: str):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(text)
    with pytest.raises(CompileError, match="is damaged: it should say how sentences are pooled"):
        read_source(tmp_path)


def test_head_that_was_never_trained_is_refused(tmp_path: Path):
    """transformers would fill it at random, with no more than a warning."""
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(BackboneError, match="lack 'classifier.bias': train the model for sequence-classification"):
        read_source(tmp_path)


def test_absent(tmp_path: Path):
    with pytest.raises(
        CompileError, match=r"model\.pt does not exist: give a model\.pt, a checkpoint folder or a Hugging"
    ):
        read_source(tmp_path / "model.pt")


def test_bundle(compiled: Bundle):
    with pytest.raises(CompileError, match="is a compiled bundle already: give the model that it was made from"):
        read_source(compiled.folder)


def test_folder_without_config(tmp_path: Path):
    with pytest.raises(CompileError, match=r"is a folder without config\.json"):
        read_source(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(5000)])
def test_file_that_is_no_checkpoint(tmp_path: Path, content: bytes):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt is no checkpoint or is cut off"):
        read_source(tmp_path / "model.pt")


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "", None, ["bert"], {"a": 1}, 3])
def test_other_architecture_names_the_supported(hugging_face: Path, model_type: Any):
    edit(hugging_face / "config.json", model_type=model_type)
    with pytest.raises(
        UnsupportedModelError, match="is not supported: use one of bert, roberta, xlm-roberta, distilbert"
    ):
        read_source(hugging_face)


@pytest.mark.parametrize("architecture", ["BertForQuestionAnswering", "BertForMultipleChoice"])
def test_other_head_names_the_tasks(hugging_face: Path, architecture: str):
    edit(hugging_face / "config.json", architectures=[architecture])
    with pytest.raises(UnsupportedModelError, match="is not supported: tasks are feature-extraction, sequence-class"):
        read_source(hugging_face)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *((text, "it should be a Hugging Face configuration") for text in ("", "{", "[]", "null", "3", '"bert"')),
        ('{"architectures": {"a": 1}}', "its architectures should be a list"),
        ('{"architectures": 3}', "its architectures should be a list"),
    ],
)
def test_config_that_is_none(hugging_face: Path, text: str, sentence: str):
    (hugging_face / "config.json").write_text(text)
    with pytest.raises(CompileError, match=rf"config\.json is damaged: {sentence}"):
        read_source(hugging_face)


def test_config_that_is_a_folder(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CodaError):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 33},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"hidden_act": "magic"},
        {"vocab_size": 7},
        {"pad_token_id": "none"},
        {"max_position_embeddings": 0},
    ],
)
def test_configuration_that_fits_no_model(hugging_face: Path, changes: dict[str, Any]):
    edit(hugging_face / "config.json", **changes)
    with pytest.raises(CodaError) as caught:
        read_source(hugging_face)
    assert "\n" not in str(caught.value)


def test_weights_absent(hugging_face: Path):
    (hugging_face / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="cannot be read"):
        read_source(hugging_face)


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_weights_cut_off(hugging_face: Path, left: int):
    path = hugging_face / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BackboneError, match="cannot be read"):
        read_source(hugging_face)


def test_weights_that_are_not_numbers(tmp_path: Path):
    model = tiny_backbone("bert")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds NaN or infinite weights in 'head"):
        read_source(tmp_path)


def test_decoder_is_refused(hugging_face: Path):
    edit(hugging_face / "config.json", is_decoder=True)
    with pytest.raises(UnsupportedModelError, match="is a decoder: routing is not causal"):
        read_source(hugging_face)


def test_delta_without_a_backbone(tmp_path: Path):
    save(tiny_coda(), tmp_path / "delta.pt", delta=True)
    with pytest.raises(OptionError, match="is a delta that names no backbone: pass one as backbone"):
        read_source(tmp_path / "delta.pt")


def test_delta_with_its_backbone_and_with_another(tmp_path: Path):
    model = tiny_coda()
    save(model, tmp_path / "delta.pt", delta=True)
    tiny_backbone("bert").save_pretrained(tmp_path / "right")
    tiny_backbone("bert", seed=1).save_pretrained(tmp_path / "wrong")
    restored = read_source(tmp_path / "delta.pt", backbone=str(tmp_path / "right")).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])
    with pytest.raises(OptionError, match="pass that one as backbone"):
        read_source(tmp_path / "delta.pt", backbone=str(tmp_path / "wrong"))


def test_loading_draws_nothing_from_the_random_state(hugging_face: Path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_backbone(AutoConfig.from_pretrained(hugging_face), "sequence-classification")
    assert torch.equal(torch.get_rng_state(), before)


def test_tokenizer_of_a_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, compiled: Bundle):
    tokenizer.save_pretrained(tmp_path / "words")
    assert read_tokenizer(str(tmp_path / "words")).get_vocab() == tokenizer.get_vocab()
    assert read_tokenizer(str(compiled.folder)).get_vocab() == tokenizer.get_vocab()


def test_folder_without_a_tokenizer(hugging_face: Path):
    with pytest.raises(CompileError, match="holds no tokenizer"):
        read_tokenizer(str(hugging_face))


def test_damaged_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    tokenizer.save_pretrained(tmp_path / "words")
    (tmp_path / "words" / "tokenizer.json").write_text("{")
    with pytest.raises(CodaError) as caught:
        read_tokenizer(str(tmp_path / "words"))
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "words")

"""Folders of strangers fetch no code, read nothing outside of themselves, and compute what transformers' classes do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_backbone, tiny_coda
from tests.json_files import edit
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers import modeling_utils as transformers_models

from coda_models import CodaConfig, load, save
from coda_models.backbone import load_backbone, load_tokenizer
from coda_models.errors import BackboneError, CheckpointError, UnsupportedModelError

TASK = "sequence-classification"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that transformers would download and import."""
    names: list[str] = []

    def spy(name: str, *rest: Any) -> None:
        names.append(name)
        raise ImportError("the real one imports what it downloads")

    monkeypatch.setattr(transformers_models, "load_and_register_kernel", spy)
    return names


KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


@pytest.mark.parametrize("value", ["attacker/evil", {"": "attacker/evil"}, "attacker/evil@main:forward"])
@pytest.mark.parametrize("key", KEYS)
def test_a_folder_that_names_a_kernel_is_read_without_it(folder: Path, fetched: list[str], key: str, value: Any):
    edit(folder / "config.json", **{key: value})
    ids = torch.arange(4, 15).unsqueeze(0)
    with torch.inference_mode():
        seen = load_backbone(folder, TASK)(ids).logits
        torch.testing.assert_close(seen, tiny_backbone("bert")(ids).logits, atol=1e-5, rtol=0)
    assert fetched == []


@pytest.mark.parametrize("key", KEYS)
def test_a_checkpoint_that_names_a_kernel_is_read_without_it(tmp_path: Path, fetched: list[str], key: str):
    save(tiny_coda("bert", CodaConfig(reduction=2)), tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    payload["hf_config"][key] = "attacker/evil"
    torch.save(payload, tmp_path / "model.pt")
    load(tmp_path / "model.pt")
    assert fetched == []


def test_the_spy_is_what_transformers_would_ask(folder: Path, fetched: list[str]):
    edit(folder / "config.json", _attn_implementation="attacker/evil")
    with pytest.raises(ImportError):
        AutoModelForSequenceClassification.from_pretrained(folder)
    assert fetched == ["attacker/evil"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "own.Own"}}, "names code of its own, {'AutoModel': 'own.Own'}, which is not run"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantised: pass the one in float32"),
        ({"pruned_heads": {"0": [1]}}, "has pruned_heads, so its layers differ in width"),
        ({"add_cross_attention": True}, "has add_cross_attention: use an encoder by itself"),
        ({"model_type": "gpt2"}, "model type 'gpt2' is not supported: use one of bert, roberta"),
    ],
)
def test_settings_that_no_standard_class_is_all_there_is_to(folder: Path, changes: dict[str, Any], message: str):
    edit(folder / "config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        load_backbone(folder, TASK)


def test_settings_that_change_nothing(folder: Path):
    """As in transformers itself, which however stops at lengths that are no multiple of a chunk."""
    changes = {"chunk_size_feed_forward": 2, "output_attentions": True, "torchscript": True, "output_past": True}
    edit(folder / "config.json", **changes)
    ids = torch.arange(4, 15).unsqueeze(0)
    with torch.inference_mode():
        (seen,) = load_backbone(folder, TASK)(ids)
        torch.testing.assert_close(seen, tiny_backbone("bert")(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "a\\x.safetensors", 3, ""]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_stays_in_its_folder(folder: Path, index: str, name: Any):
    shards(folder, safe="safetensors" in index)
    listed = json.loads((folder / index).read_text())["weight_map"]
    load_backbone(folder, TASK)
    edit(folder / index, weight_map={**listed, "classifier.bias": name})
    with pytest.raises(BackboneError, match="names weights outside of its folder"):
        load_backbone(folder, TASK)


def shards(folder: Path, *, safe: bool) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB", safe_serialization=safe)


def test_an_index_that_does_not_list_what_is_there(folder: Path):
    """transformers leaves such a tensor out without a word; ours is refused, and a whole index is not."""
    shards(folder, safe=True)
    load_backbone(folder, TASK, trained=True)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    shard = folder / listed["classifier.bias"]
    save_file({**load_file(shard), "bert.more": torch.ones(2)}, shard, metadata={"format": "pt"})
    AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(BackboneError, match="holds 'bert.more', which model.safetensors.index.json does not list"):
        load_backbone(folder, TASK, trained=True)


def test_an_index_that_lists_what_is_not_there(folder: Path):
    shards(folder, safe=True)
    path = folder / "model.safetensors.index.json"
    listed = json.loads(path.read_text())["weight_map"]
    words = "bert.embeddings.word_embeddings.weight"
    edit(path, weight_map={**listed, words: listed["classifier.bias"]})
    with pytest.raises(BackboneError, match=f"lack '{words}', which their index lists: save the model again"):
        load_backbone(folder, TASK)


def test_one_file_named_by_the_configuration(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    edit(folder / "config.json", transformers_weights="other.safetensors")
    load_backbone(folder, TASK, trained=True)
    edit(folder / "config.json", transformers_weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(BackboneError, match="names weights outside of its folder"):
        load_backbone(folder, TASK)


def test_pickled_code_does_not_run(folder: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "classifier.bias": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(folder, TASK)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_is_no_backbone(folder: Path):
    """transformers would load another model, the one that it names."""
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="somewhere")
    with pytest.raises(BackboneError, match="is an adapter, and a backbone is a whole model: merge it first"):
        load_backbone(folder, TASK)


Settle = Callable[[Path, Path], None]
FILES: dict[str, Settle] = {
    "vocabulary": lambda folder, secret: edit(folder / "tokenizer_config.json", vocab_file=str(secret)),
    "any other file": lambda folder, secret: edit(folder / "tokenizer_config.json", merges_file=str(secret)),
    "a file of the working directory": lambda folder, secret: edit(
        folder / "tokenizer_config.json", vocab_file="vocab.txt"
    ),
    "tokenizer": lambda folder, secret: edit(folder / "tokenizer_config.json", tokenizer_file=str(secret)),
    "positional arguments": lambda folder, secret: edit(folder / "tokenizer_config.json", init_inputs=[str(secret)]),
    "nested": lambda folder, secret: edit(
        folder / "tokenizer_config.json", sp_model_kwargs={"model_file": str(secret)}
    ),
    "other tokenizers": lambda folder, secret: edit(
        folder / "tokenizer_config.json", fast_tokenizer_files=[f"../{secret.name}"]
    ),
    "special tokens": lambda folder, secret: edit(folder / "special_tokens_map.json", vocab_file=str(secret)),
}


@pytest.mark.parametrize("setting", list(FILES))
def test_a_tokenizer_reads_its_own_files_alone(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, setting: str
):
    secret = tmp_path / "secret.txt"
    secret.write_text("[UNK]\nroot:x:0:0\n")
    tokenizer.save_pretrained(folder)
    FILES[setting](folder, secret)
    with pytest.raises(BackboneError, match=r"names files to read, .*: remove it, a tokenizer's files are found by"):
        load_tokenizer(folder)


def test_what_a_vocabulary_elsewhere_would_become(tmp_path: Path):
    """The fault that the test above is about: lines of any file become tokens."""
    (tmp_path / "secret.txt").write_text("[UNK]\nroot:x:0:0\n")
    folder = tmp_path / "words"
    folder.mkdir()
    edit(folder / "tokenizer_config.json", vocab_file=str(tmp_path / "secret.txt"), tokenizer_class="BertTokenizer")
    assert "root:x:0:0" in AutoTokenizer.from_pretrained(folder).get_vocab()


def test_files_that_transformers_does_not_read_may_be_named(folder: Path, tokenizer: PreTrainedTokenizerFast):
    """Many folders on the hub say where their writer's tokens lay."""
    tokenizer.save_pretrained(folder)
    edit(
        folder / "tokenizer_config.json",
        special_tokens_map_file="/root/.cache/map.json",
        name_or_path="/root/words",
        vocab_file=None,
    )
    assert load_tokenizer(folder)("w1 good")["input_ids"] == tokenizer("w1 good")["input_ids"]


def test_a_checkpoints_tokenizer_reads_its_own_files_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    save(tiny_coda("bert"), tmp_path / "model.pt", tokenizer=tokenizer)
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    settings = json.loads(payload["tokenizer_files"]["tokenizer_config.json"])
    payload["tokenizer_files"]["tokenizer_config.json"] = json.dumps({**settings, "vocab_file": "/etc/passwd"})
    torch.save(payload, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="names files to read, vocab_file: '/etc/passwd'"):
        load(tmp_path / "model.pt")


def test_code_of_a_tokenizers_own(folder: Path, tokenizer: PreTrainedTokenizerFast):
    tokenizer.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    with pytest.raises(
        BackboneError, match="names code of its own, .* which is not run: save one of transformers' own"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("layer_norm_eps", "x", "a number"),
        ("hidden_dropout_prob", [], "a number"),
        ("initializer_range", {}, "a number"),
        ("hidden_size", 32.0, "a whole number"),
        ("type_vocab_size", True, "a whole number"),
        ("hidden_act", 3, "text"),
        ("is_decoder", "no", "true or false"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(folder: Path, key: str, value: Any, kind: str):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(
        BackboneError, match=f"backbone has {key} .*, which should be {kind}: put the model's own there$"
    ):
        load_backbone(folder, TASK)


def test_whole_numbers_serve_as_numbers(folder: Path):
    edit(folder / "config.json", hidden_dropout_prob=0, initializer_range=1)
    load_backbone(folder, TASK)

"""Backbones from folders, the cache and the hub; none of the tests asks a real hub."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import TINY, tiny_backbone
from transformers import AutoConfig, AutoTokenizer

from coda_models import backbone as module
from coda_models.architectures import FAMILIES
from coda_models.backbone import AUTO_CLASSES, build_backbone, load_backbone, load_tokenizer
from coda_models.errors import BackboneError
from coda_ops.errors import CodaError, OptionError


@pytest.fixture
def folder(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def questions(monkeypatch):
    """The names that a hub out of reach was asked for."""
    asked = []

    class Unreachable:
        def model_info(self, name, timeout):
            asked.append(name)
            raise ConnectionError("Network is unreachable\nand more lines")

    monkeypatch.setattr(module, "HfApi", Unreachable)
    return asked


def test_a_folder_comes_back_in_float32_and_evaluation_mode(folder):
    wanted = tiny_backbone("bert")
    wanted.half().save_pretrained(folder)
    model = load_backbone(folder, "sequence-classification")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted.state_dict()[name].float())


def test_another_number_of_labels_is_another_question(tmp_path):
    model = tiny_backbone("bert", "feature-extraction")
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path)
    task = "sequence-classification"
    assert load_backbone(tmp_path, task, num_labels=3).config.problem_type == "multi_label_classification"
    assert load_backbone(tmp_path, task, num_labels=2).config.problem_type is None


def test_options_change_the_configuration(folder):
    model = load_backbone(folder, "feature-extraction", attention_probs_dropout_prob=0.5)
    assert model.config.attention_probs_dropout_prob == 0.5


def test_building_leaves_the_random_state_alone():
    config = tiny_backbone("bert").config
    before = torch.get_rng_state()
    model = build_backbone(config, "sequence-classification")
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


def test_a_head_yet_to_be_trained_is_fine_unless_a_trained_one_is_wanted(tmp_path):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path / "bare")
    assert load_backbone(tmp_path / "bare", "token-classification") is not None
    with pytest.raises(BackboneError, match=r"lack 'classifier\.bias': train the model for token-classification"):
        load_backbone(tmp_path / "bare", "token-classification", trained=True)


def test_a_trained_head_is_found(folder):
    assert load_backbone(folder, "sequence-classification", trained=True) is not None


def without_pooler(folder):
    """Take the tensors of a pooler out of saved weights, and say which these were."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    poolers = [name for name in tensors if "pooler." in name]
    save_file({name: tensors[name] for name in tensors if name not in poolers}, path, metadata={"format": "pt"})
    return poolers


@pytest.mark.parametrize("task", list(AUTO_CLASSES))
@pytest.mark.parametrize("kind", [*sorted(TINY), "deberta-v2"])
def test_a_pooler_must_be_trained_where_the_task_reads_it(kind, task, tmp_path, monkeypatch):
    """Whether it does, gradients of transformers' own model say. DeBERTa's stands beside the encoder."""
    monkeypatch.setitem(FAMILIES, kind, FAMILIES.get(kind, "of.another.package"))
    settings = {"vocab_size": 100, "pad_token_id": 0, "num_labels": 3, **TINY.get(kind, TINY["bert"])}
    model = AUTO_CLASSES[task].from_config(AutoConfig.for_model(kind, **settings))
    model(torch.tensor([[5, 6, 7]]))[0].sum().backward()
    is_read = any("pooler." in name and one.grad is not None for name, one in model.named_parameters())
    model.save_pretrained(tmp_path)
    poolers = without_pooler(tmp_path)
    assert poolers or not is_read
    if is_read:
        with pytest.raises(BackboneError, match=r"lack '(bert\.)?pooler\.dense\.bias': train the model for"):
            load_backbone(tmp_path, task, trained=True)
        load_backbone(tmp_path, task, trained=True, supplied=poolers)
    else:
        load_backbone(tmp_path, task, trained=True)
    load_backbone(tmp_path, task)


def test_a_bare_encoder_s_pooler_must_be_trained_where_the_caller_s_head_reads_it(tmp_path):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path)
    load_backbone(tmp_path, "feature-extraction", trained=True, reads_pooler=True)
    without_pooler(tmp_path)
    load_backbone(tmp_path, "feature-extraction", trained=True)
    with pytest.raises(BackboneError, match=r"lack 'pooler\.dense\.bias'"):
        load_backbone(tmp_path, "feature-extraction", trained=True, reads_pooler=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "unheard-of"}'),
        ("config.json", b'{"model_type": "bert", "hidden_act": "gemu"}'),
        ("config.json", b'{"auto_map": {"AutoConfig": "own.Own"}}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"broken"),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_a_damaged_folder_is_one_sentence(folder, name, content, questions):
    (folder / name).write_bytes(content)
    with pytest.raises(BackboneError, match="cannot be read: .+") as caught:
        load_backbone(folder, "sequence-classification")
    assert "\n" not in str(caught.value)
    assert questions == []


def test_a_name_that_no_hub_in_reach_has(questions):
    """Asked once, since transformers would retry for minutes."""
    with pytest.raises(OptionError, match="neither a folder, nor in the local hub cache") as caught:
        load_backbone("coda-tests/no-such-model", "sequence-classification")
    assert "pass its folder as backbone" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert questions == ["coda-tests/no-such-model"]
    with pytest.raises(OptionError, match="neither a folder"):
        load_tokenizer("coda-tests/no-such-model")


@pytest.mark.parametrize("name", ["no/such/place/at/all", "/no/such/folder", "white space", "..", "a--b/..c"])
def test_what_is_no_hub_name_is_one_sentence(name, tmp_path, monkeypatch):
    """The hub's own client refuses these before it asks anyone."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodaError) as caught:
        load_backbone(name, "sequence-classification")
    assert "\n" not in str(caught.value)


def test_a_hub_that_answers_but_fails_to_deliver(monkeypatch):
    class Answers:
        def model_info(self, name, timeout):
            return object()

    def load(name, **options):
        raise OSError("disk full\nsecond line")

    monkeypatch.setattr(module, "HfApi", Answers)
    monkeypatch.setattr(module.AutoConfig, "from_pretrained", load)
    with pytest.raises(BackboneError, match="cannot be read from the hub: disk full$"):
        load_backbone("coda-tests/model", "sequence-classification")


def test_a_folder_without_a_tokenizer_has_none(folder):
    assert load_tokenizer(folder) is None


def test_a_tokenizer_beside_the_encoder_is_found(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder)("w1 good")["input_ids"] == tokenizer("w1 good")["input_ids"]


def test_whatever_tokenizer_autotokenizer_reads_is_found(tmp_path):
    """Of byte-level BPE there are folders with nothing but these two files."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer

    tiny_backbone("roberta").save_pretrained(tmp_path)
    words = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words.train_from_iterator(["a film with a plot"], vocab_size=300, show_progress=False, special_tokens=special)
    words.save_model(str(tmp_path))
    assert (
        load_tokenizer(tmp_path)("a plot")["input_ids"]
        == AutoTokenizer.from_pretrained(tmp_path)("a plot")["input_ids"]
    )


@pytest.mark.parametrize("text", ["", "[]", '{"model": 3}'])
def test_a_damaged_tokenizer_is_one_sentence(folder, tokenizer, text):
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(BackboneError, match="cannot be read: .+") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_whose_input_names_are_null(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    wanted = AutoTokenizer.from_pretrained(tmp_path)("good film", "bad")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": None}))
    found = load_tokenizer(tmp_path)
    assert found is not None
    assert found("good film", "bad") == wanted

"""Damaged and hostile checkpoints: one sentence each, no code run, nothing left behind, never another exception."""

import json
import os
import random
import tempfile

import pytest
import torch
from tests.conftest import tiny_backbone, tiny_coda

from coda_models import CodaConfig, load, save, save_pretrained
from coda_models.checkpoint import is_checkpoint_folder
from coda_models.digest import tensor_digest
from coda_models.errors import BackboneError, CheckpointError, ConfigError
from coda_ops import CodaError


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path, monkeypatch):
    """Temporary folders are made in an own one, which is empty again afterwards."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def model():
    return tiny_coda("bert", CodaConfig(reduction="7/2", bottleneck=8))


@pytest.fixture
def complete(model, tmp_path, tokenizer):
    save(model, tmp_path / "model.pt", tokenizer=tokenizer)
    return tmp_path / "model.pt"


@pytest.fixture
def delta(model, tmp_path, tokenizer):
    """A delta, and the folder of its backbone."""
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    save(model, tmp_path / "delta.pt", delta=True)
    return tmp_path / "delta.pt", tmp_path / "backbone"


@pytest.fixture
def folder(model, tmp_path, tokenizer):
    save_pretrained(model, tmp_path / "folder", tokenizer=tokenizer)
    return tmp_path / "folder"


def refused(path, part, kind=CheckpointError, **options):
    with pytest.raises(kind) as caught:
        load(path, **options)
    message = str(caught.value)
    assert part in message
    assert "\n" not in message


def edit(path, change):
    """Let ``change`` alter a checkpoint's payload; the digest is made to fit again."""
    payload = torch.load(path, weights_only=True)
    change(payload)
    if isinstance(payload["state"], dict):
        payload["sha256"] = tensor_digest(
            {
                name: tensor
                for name, tensor in payload["state"].items()
                if isinstance(name, str) and isinstance(tensor, torch.Tensor) and not tensor.is_sparse
            }
        )
    torch.save(payload, path)


def test_the_fixtures_are_sound(complete, delta, folder):
    """Or every refusal below would prove nothing."""
    for loaded in (load(complete), load(delta[0], backbone=delta[1]), load(folder)):
        assert loaded.tokenizer is not None


def same_weights(loaded, model):
    wanted = model.state_dict()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.model.state_dict().items())


def flips(file, count, within=None):
    """Damage a file in ``count`` ways, one after another: a bit flipped, or its end cut off."""
    whole = file.read_bytes()
    dice = random.Random(0)
    for i in range(count):
        damaged = bytearray(whole)
        damaged[dice.randrange(min(within or len(whole), len(whole)))] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged if i % 5 else damaged[: dice.randrange(len(whole))])
        yield
    file.write_bytes(whole)


def found_or_harmless(file, count, model, path, within=None, **options):
    """How many damages were found; any other exception than the project's own fails the test."""
    sentences = []
    for _ in flips(file, count, within):
        try:
            loaded = load(path, **options)
        except CodaError as error:
            sentences.append(str(error))
        else:
            assert same_weights(loaded, model)
    assert not [sentence for sentence in sentences if "\n" in sentence]
    return len(sentences)


def test_damage_to_a_complete_file(complete, model):
    assert found_or_harmless(complete, 120, model, complete) > 90


def test_damage_to_the_head_of_a_complete_file(complete, model):
    """Where the pickle lies: torch itself loads some of these with other values."""
    config = load(complete).model.coda_config
    found = 0
    for _ in flips(complete, 120, within=8000):
        try:
            loaded = load(complete)
        except CodaError:
            found += 1
        else:
            assert same_weights(loaded, model)
            assert loaded.model.coda_config == config
    assert found > 90


def test_damage_to_a_delta(delta, model):
    assert found_or_harmless(delta[0], 80, model, delta[0], backbone=delta[1]) > 60


def test_damage_to_a_deltas_backbone(delta, model):
    weights = delta[1] / "model.safetensors"
    assert found_or_harmless(weights, 80, model, delta[0], within=6000, backbone=delta[1]) > 50


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damage_to_a_folder(folder, model, name):
    assert found_or_harmless(folder / name, 80, model, folder, within=6000) > 20


@pytest.mark.parametrize("length", [0, 1, 4, 100, 2000])
def test_cut_off_near_the_start(complete, length):
    complete.write_bytes(complete.read_bytes()[:length])
    refused(complete, "is no checkpoint or is cut off")


def test_cut_off_by_one_byte(complete):
    complete.write_bytes(complete.read_bytes()[:-1])
    refused(complete, "is no checkpoint or is cut off")


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["payload", "field", "state"])
def test_code_does_not_run_wherever_it_sits(complete, tmp_path, where):
    mark = tmp_path / "ran"
    payload = torch.load(complete, weights_only=True)
    if where == "payload":
        payload = Touch(mark)
    elif where == "field":
        payload["coda_config"]["backbone"] = Touch(mark)
    else:
        payload["state"]["layers.0.adapter.down"] = Touch(mark)
    torch.save(payload, complete)
    refused(complete, "holds Python code beside tensors and was not opened")
    assert not mark.exists()
    torch.load(complete, weights_only=False)
    assert mark.exists()  # or it never would have run at all


def test_code_in_torchs_old_format_does_not_run(tmp_path):
    torch.save(Touch(tmp_path / "ran"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "is no checkpoint")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "payload", [None, 3, [], {}, {"format": "other"}, torch.ones(3), {"format": torch.ones(2)}, {"model": {}}]
)
def test_a_torch_file_with_something_else(tmp_path, payload):
    torch.save(payload, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "is a torch file but no CoDA checkpoint")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(complete, version):
    edit(complete, lambda payload: payload.update(format_version=version))
    refused(complete, f"has checkpoint version {version!r}; this release reads 1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", None),
        ("kind", "partial"),
        ("coda_config", []),
        ("hf_config", "bert"),
        ("state", []),
        ("tokenizer_files", ["tokenizer.json"]),
        ("truncation_side", "middle"),
        ("truncation_side", 1),
    ],
)
def test_a_field_of_the_wrong_kind(complete, field, value):
    edit(complete, lambda payload: payload.update({field: value}))
    refused(complete, f"is damaged: its field {field!r}")


@pytest.mark.parametrize("field", ["kind", "coda_config", "hf_config", "state", "truncation_side", "tokenizer_files"])
def test_a_field_that_is_missing(complete, field):
    payload = torch.load(complete, weights_only=True)
    del payload[field]
    torch.save(payload, complete)
    refused(complete, f"its field {field!r} is missing or of the wrong type")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": 33}, "describes a model that cannot be built"),
        ({"hidden_size": -32}, "has hidden_size .*: it should be a whole number from 1 on"),
        ({"hidden_size": "wide"}, "has hidden_size .*: it should be a whole number from 1 on"),
        ({"hidden_size": 10**15}, "describes a larger one than its"),
        ({"num_attention_heads": 0}, "has num_attention_heads 0: it should be a whole number from 1 on"),
        ({"hidden_act": "gemu"}, "describes a model that cannot be built"),
        ({"pad_token_id": 10**6}, "cannot be built"),
        ({"hidden_size": 64}, "has shape"),
        ({"num_hidden_layers": 1}, "reduction|unknown tensor"),
        ({"num_hidden_layers": 3}, "lacks"),
        ({"model_type": "unheard-of"}, "describes no known architecture"),
        ({"model_type": ["bert"]}, "describes no known architecture"),
        ({"id2label": 3}, "describes no known architecture"),
        ({3: 4}, "describes no known architecture"),
        ({"model_type": "gpt2"}, "is not supported"),
    ],
)
def test_a_backbone_configuration_of_no_model(complete, change, part):
    edit(complete, lambda payload: payload["hf_config"].update(change))
    with pytest.raises(CodaError, match=part) as caught:
        load(complete)
    assert "\n" not in str(caught.value)


def test_a_backbone_configuration_without_a_type(complete):
    edit(complete, lambda payload: payload["hf_config"].pop("model_type"))
    refused(complete, "describes no known architecture")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"reduction": "1/2"}, "below 1"),
        ({"reduction": None}, "no ratio"),
        ({"attention": ["k_to_k"]}, "is unknown"),
        ({"bottleneck": 10**15}, "bottleneck"),
        ({"epsilon_final": "0.03"}, "epsilon_final"),
        ({"routed_layers": [7]}, "routed_layers names layer 7"),
        ({"reduction": ["4"]}, "reduction lists 1 layers"),
        ({"version": 2}, "configuration version 2"),
        ({"surprise": 1}, "field 'surprise' is unknown"),
    ],
)
def test_a_configuration_of_no_model(complete, folder, change, part):
    edit(complete, lambda payload: payload["coda_config"].update(change))
    refused(complete, part, ConfigError)
    plain = json.loads((folder / "config.json").read_text())
    plain["coda"].update(change)
    (folder / "config.json").write_text(json.dumps(plain))
    refused(folder, part, ConfigError)


NAME = "layers.1.adapter.up"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda state: state.update({NAME: torch.ones(3, 3)}), "adapter.up' has shape [3, 3], expected [8, 32]"),
        (lambda state: state[NAME].fill_(float("nan")), "NaN or infinite weights in 'layers.1.adapter.up'"),
        (lambda state: state[NAME][0].fill_(float("-inf")), "NaN or infinite weights in 'layers.1.adapter.up'"),
        (lambda state: state.pop(NAME), "lacks 'layers.1.adapter.up'"),
        (lambda state: state.update({"more": torch.ones(1)}), "unknown tensor 'more'"),
        (lambda state: state.update({1: torch.ones(1), "more": torch.ones(1)}), "unknown tensor 1"),
        (lambda state: state.update({NAME: [0.0]}), "'layers.1.adapter.up' is no tensor"),
        (lambda state: state.update({NAME: torch.ones(8, 32).to_sparse()}), "'layers.1.adapter.up' is no dense tensor"),
        (lambda state: state.update({NAME: torch.ones(8, 32) * 1j}), "'layers.1.adapter.up' is no dense tensor"),
        (lambda state: state.update({NAME: torch.ones(8, 32).to(torch.float8_e4m3fn)}), "is no dense tensor of plain"),
    ],
)
def test_tensors_that_do_not_fit(complete, delta, change, part):
    for path, options in ((complete, {}), (delta[0], {"backbone": delta[1]})):
        edit(path, lambda payload: change(payload["state"]))
        refused(path, part, **options)


def test_a_value_changed_behind_the_digest(complete):
    payload = torch.load(complete, weights_only=True)
    payload["state"][NAME][0, 0] += 1
    torch.save(payload, complete)
    refused(complete, "do not have the SHA-256 that it records")


def test_a_type_changed_behind_the_digest(complete):
    payload = torch.load(complete, weights_only=True)
    payload["state"][NAME] = payload["state"][NAME].half()
    torch.save(payload, complete)
    refused(complete, "do not have the SHA-256 that it records")


@pytest.mark.parametrize("name", ["../escaped", "a/b", "..", ".", "", "/escaped", "\0", "x" * 5000, 3])
def test_a_tokenizer_file_with_a_bad_name(complete, tmp_path, name):
    edit(complete, lambda payload: payload["tokenizer_files"].update({name: "{}"}))
    refused(complete, "carries a tokenizer file")
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", b"bytes", "\ud800"])
def test_a_tokenizer_file_with_bad_content(complete, text):
    edit(complete, lambda payload: payload["tokenizer_files"].update({"tokenizer.json": text}))
    refused(complete, "carries a tokenizer")


def test_a_tokenizers_own_code_is_neither_run_nor_asked_about(complete, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "y")  # what transformers would ask
    plain = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    files = {"tokenizer_config.json": json.dumps(plain), "own.py": "raise SystemExit('ran')"}
    edit(complete, lambda payload: payload.update(tokenizer_files=files))
    refused(complete, "carries a tokenizer that cannot be read")


@pytest.mark.parametrize("text", ["", "{", "[]", '["coda"]', '"coda"', "{}", '{"coda": 1}', '{"coda": []}', "null"])
def test_a_folder_whose_config_is_none(folder, text):
    (folder / "config.json").write_text(text)
    assert not is_checkpoint_folder(folder)
    refused(folder, "is no CoDA checkpoint")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")


def test_a_folder_whose_weights_are_a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, "is damaged or cut off")


@pytest.mark.parametrize("sha256", [None, "", "0" * 64, 5])
def test_a_folder_with_another_digest(folder, sha256):
    plain = json.loads((folder / "config.json").read_text())
    plain["coda"]["sha256"] = sha256
    (folder / "config.json").write_text(json.dumps(plain))
    refused(folder, "do not have the SHA-256 that it records")


def test_a_delta_on_a_backbone_of_another_shape(delta, tmp_path):
    tiny_backbone("roberta").save_pretrained(tmp_path / "other")
    refused(delta[0], "", BackboneError, backbone=tmp_path / "other")


def test_a_delta_on_an_empty_folder(delta, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(delta[0], "cannot be read", BackboneError, backbone=tmp_path / "empty")


def test_a_save_that_fails_half_way_keeps_the_old_file(complete, model, monkeypatch):
    before = complete.read_bytes()

    def half(payload, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space left"):
        save(model, complete)
    assert complete.read_bytes() == before


def test_saving_into_an_existing_file_replaces_it(complete, model):
    complete.write_text("something else")
    save(model, complete)
    assert same_weights(load(complete), model)

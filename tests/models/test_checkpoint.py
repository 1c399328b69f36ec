"""Checkpoints: what is written comes back, and what is damaged or hostile is refused in one sentence."""

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_models import CodaConfig, CodaModel, convert, from_pretrained, load, save, save_pretrained
from coda_models.checkpoint import rebuilt
from coda_models.errors import BackboneError, CheckpointError
from coda_ops import CodaError
from coda_ops.errors import OptionError
from coda_targets.fidelity import Fidelity, Figure


@pytest.fixture(scope="module")
def model() -> CodaModel:
    return tiny_coda("bert", CodaConfig(reduction="7/2", backbone="someone/tiny"))


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def same(a: CodaModel, b: CodaModel) -> bool:
    mine, yours = a.state_dict(), b.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def test_complete(model: CodaModel, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    save(model, tmp_path / "model.pt", tokenizer=tokenizer)
    loaded = load(tmp_path / "model.pt")
    assert same(loaded.model, model)
    assert loaded.model.coda_config == model.coda_config
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("w1 good")["input_ids"] == tokenizer("w1 good")["input_ids"]


def test_delta(model: CodaModel, tmp_path: Path, backbone: Path):
    save(model, tmp_path / "model.pt", delta=True)
    save(model, tmp_path / "whole.pt")
    assert same(load(tmp_path / "model.pt", backbone=backbone).model, model)
    assert (tmp_path / "model.pt").stat().st_size < (tmp_path / "whole.pt").stat().st_size


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "roberta-prelayernorm"])
def test_folder(family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda(family, CodaConfig(reduction=[2, 1]))
    save_pretrained(model, tmp_path / "folder", tokenizer=tokenizer)
    assert same(from_pretrained(tmp_path / "folder").model, model)
    assert same(load(tmp_path / "folder").model, model)


def test_a_tokenizer_keeps_the_end_it_cuts(model: CodaModel, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    tokenizer.truncation_side = "left"
    try:
        save(model, tmp_path / "model.pt", tokenizer=tokenizer)
    finally:
        tokenizer.truncation_side = "right"
    loaded = load(tmp_path / "model.pt")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.truncation_side == "left"


def refused(path: Path, message: str, kind: type[CodaError] = CheckpointError, **options: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoint(tmp_path: Path):
    refused(tmp_path / "absent.pt", "does not exist")
    (tmp_path / "text.pt").write_text("not a model")
    refused(tmp_path / "text.pt", "is no checkpoint or is cut off")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "b")
    refused(tmp_path / "zip.pt", "a zip archive but no torch file")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "no CoDA checkpoint")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no CoDA checkpoint")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def test_a_pickle_with_code_does_not_run(tmp_path: Path):
    torch.save({"format": "coda-checkpoint", "state": Bomb(tmp_path / "ran")}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "Python code beside tensors")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(tmp_path / "plain.pt", "no checkpoint")
    assert not (tmp_path / "ran").exists()


def test_cut_off(model: CodaModel, tmp_path: Path):
    save(model, tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
        refused(tmp_path / "cut.pt", "cut off|damaged")


def test_flipped_bits_are_found_or_harmless(model: CodaModel, tmp_path: Path):
    save(model, tmp_path / "model.pt", delta=True)
    whole = (tmp_path / "model.pt").read_bytes()
    reference = torch.load(tmp_path / "model.pt", weights_only=True)["state"]
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    dice = random.Random(0)
    found = 0
    for _ in range(60):
        broken = bytearray(whole)
        broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
        (tmp_path / "flipped.pt").write_bytes(broken)
        try:
            state = load(tmp_path / "flipped.pt", backbone=tmp_path / "backbone").model.state_dict()
        except CodaError:
            found += 1
        else:  # the bit lay in padding, or in what says nothing about the model
            assert all(torch.equal(state[name], tensor) for name, tensor in reference.items())
    assert found > 10


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_safetensors(model: CodaModel, tmp_path: Path, damage: str):
    save_pretrained(model, tmp_path / "folder")
    weights = tmp_path / "folder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        content = content[:-100]
    else:
        content[-100] ^= 1
    weights.write_bytes(content)
    refused(tmp_path / "folder", "damaged")


def edited(model: CodaModel, path: Path, **changes: Any) -> Path:
    """A checkpoint whose fields were changed after writing, with a fitting digest for its state."""
    from coda_models.digest import tensor_digest

    save(model, path, delta=True)
    payload = {**torch.load(path, weights_only=True), **changes}
    payload["sha256"] = tensor_digest(payload["state"])
    torch.save(payload, path)
    return path


def test_weights_that_do_not_fit(model: CodaModel, tmp_path: Path, backbone: Path):
    save(model, tmp_path / "model.pt", delta=True)
    state = torch.load(tmp_path / "model.pt", weights_only=True)["state"]
    name = "layers.0.adapter.down"
    cases = {
        r"'layers.0.adapter.down' has shape \[3, 3\]": {**state, name: torch.ones(3, 3)},
        "NaN or infinite weights in 'layers.0.adapter.down'": {**state, name: state[name] * float("nan")},
        "lacks 'layers.0.adapter.down'": {key: value for key, value in state.items() if key != name},
        "unknown tensor 'surprise'": {**state, "surprise": torch.ones(1)},
    }
    for message, changed in cases.items():
        refused(edited(model, tmp_path / "bad.pt", state=changed), message, backbone=backbone)
    refused(edited(model, tmp_path / "bad.pt", format_version=9), "checkpoint version 9", backbone=backbone)


def test_what_was_measured_stays_with_the_tensors(model: CodaModel, tmp_path: Path):
    found = Fidelity((Figure("accuracy", 0.9, 0.8, 0.95, 0.92),), 40, 12, 200)
    save(model, tmp_path / "model.pt", fidelity=found)
    assert load(tmp_path / "model.pt").fidelity == found
    save(model, tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").fidelity is None


@pytest.mark.parametrize(
    "found",
    [
        [],
        {},
        {"figures": [{"name": "accuracy", "value": float("nan"), "low": 0.0, "high": 1.0}]},
        {"figures": [], "texts": 1, "tokens": 1, "fitted_on": 1},
        {"figures": [{"name": "a", "value": 1.0, "low": 1.0, "high": 1.0}], "texts": "9", "tokens": 1, "fitted_on": 1},
    ],
)
def test_what_says_nothing_of_the_tensors(found: Any, model: CodaModel, tmp_path: Path, backbone: Path):
    refused(edited(model, tmp_path / "bad.pt", fidelity=found), "field 'fidelity' cannot be read", backbone=backbone)


def test_a_tokenizer_file_that_escapes(model: CodaModel, tmp_path: Path):
    save(model, tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    payload["tokenizer_files"] = {"../escaped.json": "{}"}
    torch.save(payload, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "bad name|cannot be written|tokenizer")
    assert not list(tmp_path.glob("escaped*"))


def test_backbone_absent_or_another(model: CodaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save(model, tmp_path / "model.pt", delta=True)
    refused(tmp_path / "model.pt", "pass its folder as backbone", OptionError, backbone=tmp_path / "nowhere")
    tiny_backbone("bert", seed=7).save_pretrained(tmp_path / "another")
    refused(tmp_path / "model.pt", "but the checkpoint was trained on", OptionError, backbone=tmp_path / "another")
    (tmp_path / "another" / "model.safetensors").write_bytes(b"broken")
    refused(tmp_path / "model.pt", "cannot be read", BackboneError, backbone=tmp_path / "another")
    nameless = convert(tiny_backbone("bert"), CodaConfig())
    save(nameless, tmp_path / "nameless.pt", delta=True)
    refused(tmp_path / "nameless.pt", "names no backbone", OptionError)


def test_a_failed_save_leaves_the_old_file(model: CodaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(model, tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space"):
        save(model, tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == before


def test_a_missing_folder_is_told_before_anything_is_written(tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere does not exist: make it before saving model.pt there"):
        save(tiny_coda("bert"), tmp_path / "nowhere" / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_rebuilt_is_what_loading_gives(model: CodaModel, tmp_path: Path):
    save(model, tmp_path / "model.pt")
    again, loaded = rebuilt(model), load(tmp_path / "model.pt").model
    assert same(again, loaded)
    assert again.coda_config == loaded.coda_config
    assert again is not model


def test_a_part_that_no_configuration_speaks_of_has_no_place():
    other = tiny_coda("bert", CodaConfig(reduction=2))
    other.head = torch.nn.Sequential(other.head, torch.nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match=r"a checkpoint has no place for 'head\.0.*' as this model has it"):
        rebuilt(other)
    narrow = tiny_coda("bert", CodaConfig(reduction=2))
    narrow.coda_config = CodaConfig(reduction=2, bottleneck=8)
    with pytest.raises(CheckpointError, match=r"no place for 'layers\.0\.adapter"):
        rebuilt(narrow)

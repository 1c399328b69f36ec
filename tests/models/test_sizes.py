"""Configurations that describe more than their weights hold are refused before a model of that size is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import TINY, tiny_backbone, tiny_coda
from tests.frames import tiny_frames
from tests.json_files import edit

from coda_models import CodaConfig, load, save, save_pretrained
from coda_models.backbone import load_backbone
from coda_models.errors import BackboneError, CheckpointError
from coda_models.learned_parts import LayerParts, LearnedParts

TASK = "sequence-classification"
HUGE: list[tuple[str, Any]] = [
    ("vocab_size", 20_000_000),
    ("max_position_embeddings", 10**9),
    ("num_hidden_layers", 10_000),
    ("num_hidden_layers", 10**9),
    ("hidden_size", 10**6),
    ("intermediate_size", 10**9),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


@contextmanager
def making_nothing() -> Iterator[None]:
    """A block in which no module can be made."""

    def refuse(*sizes: Any, **options: Any) -> None:
        raise AssertionError("a model is made before its weights are looked at")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "__init__", refuse)
        yield


@pytest.mark.parametrize(("key", "value"), HUGE)
def test_a_folder(folder: Path, key: str, value: int):
    edit(folder / "config.json", **{key: value})
    with (
        making_nothing(),
        pytest.raises(BackboneError, match=r"cannot be read: .* a larger one than its 0\.1 MB of weights hold"),
    ):
        load_backbone(folder, TASK)


def test_tables_narrower_than_layers(tmp_path: Path):
    """ELECTRA's: a folder that holds nothing but tables is as large as these say, not as wide as layers are."""
    tiny_backbone("electra").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", embedding_size=10**6)
    with making_nothing(), pytest.raises(BackboneError, match=r"describes a larger one than its 0\.1 MB of weights"):
        load_backbone(tmp_path, TASK)
    edit(tmp_path / "config.json", embedding_size=0)
    with pytest.raises(BackboneError, match="has embedding_size 0: it should be a whole number from 1 on"):
        load_backbone(tmp_path, TASK)


def test_a_folder_of_torch_weights_or_shards(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    load_backbone(folder, TASK)
    tiny_backbone("bert").save_pretrained(folder, max_shard_size="50KB")
    (folder / "pytorch_model.bin").unlink()
    load_backbone(folder, TASK)
    edit(folder / "config.json", num_hidden_layers=10**9)
    with pytest.raises(BackboneError, match="describes a larger one"):
        load_backbone(folder, TASK)


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family_in_half_precision(family: str, tmp_path: Path):
    tiny_backbone(family).half().save_pretrained(tmp_path)
    load_backbone(tmp_path, TASK)
    name = "n_layers" if family == "distilbert" else "num_hidden_layers"
    edit(tmp_path / "config.json", **{name: 10**9})
    with pytest.raises(BackboneError, match="describes a larger one"):
        load_backbone(tmp_path, TASK)


@pytest.mark.parametrize("value", [10**9, -1, "x", True, 1 << 60])
def test_labels_are_counted_before_they_are_named(folder: Path, value: Any):
    edit(folder / "config.json", num_labels=value)
    with pytest.raises(BackboneError, match="has num_labels .*: put how many there are"):
        load_backbone(folder, TASK)


@pytest.mark.parametrize("value", [0, -1, None])
@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "num_attention_heads"])
def test_a_size_that_is_none(folder: Path, key: str, value: Any):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(BackboneError, match=rf"has {key} (0|-1|None): it should be a whole number from 1 on"):
        load_backbone(folder, TASK)


@pytest.mark.parametrize(("key", "value"), HUGE)
def test_a_checkpoint(tmp_path: Path, key: str, value: int):
    path, folder = checkpoints(tmp_path)
    payload = torch.load(path, weights_only=True)
    payload["hf_config"][key] = value
    torch.save(payload, path)
    edit(folder / "config.json", **{key: value})
    for source in (path, folder):
        with making_nothing(), pytest.raises(CheckpointError, match="describes a larger one"):
            load(source)


@pytest.mark.parametrize(
    "change",
    [
        {"bottleneck": 65536},
        {"stand_in": 65536},
        {"key_value_rank": 65536, "attention": "k_to_all"},
        {"parts": LearnedParts(prompt=65536).to_dict()},
        {"parts": LearnedParts(layers=[LayerParts(prefix=65536)] * 2).to_dict()},
        {"parts": {"invertible": {"first": 65536, "second": 8}}},
    ],
    ids=str,
)
def test_what_a_checkpoint_has_learned(tmp_path: Path, change: dict[str, Any]):
    path, _ = checkpoints(tmp_path)
    payload = torch.load(path, weights_only=True)
    payload["coda_config"].update(change)
    torch.save(payload, path)
    with (
        making_nothing(),
        pytest.raises(CheckpointError, match="its own configuration, which describes more than its 0"),
    ):
        load(path)


def test_families_of_other_packages_say_by_themselves_how_large_they_are(tmp_path: Path):
    save(tiny_frames(), tmp_path / "model.pt")
    load(tmp_path / "model.pt")


def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """A model.pt and a folder."""
    model = tiny_coda("bert", CodaConfig(reduction=2, bottleneck=8))
    save(model, tmp_path / "model.pt")
    save_pretrained(model, tmp_path / "folder")
    return tmp_path / "model.pt", tmp_path / "folder"

"""Sizes that no weights of the adapters library have are refused before the library makes modules of them."""

from pathlib import Path
from typing import Any

import adapters
import pytest
from tests.compiler.sources.library_adapters import CONFIGS, saved
from tests.json_files import edit

from coda_compile.sources import read_source
from coda_models.errors import CheckpointError
from coda_ops.foreign_json import json_object


@pytest.mark.parametrize(
    ("config", "name", "change"),
    [
        ("Pfeiffer with an invertible adapter", "reduction_factor", 1e-6),
        ("Pfeiffer with an invertible adapter", "reduction_factor", {"0": 16, "default": 1e-6}),
        ("Pfeiffer with an invertible adapter", "inv_adapter_reduction_factor", 1e-6),
        ("LoRA", "r", 10**7),
        ("prefix", "prefix_length", 10**7),
    ],
)
def test_an_adapter(tmp_path: Path, config: str, name: str, change: Any):
    saved(tmp_path / "task", CONFIGS[config])
    path = tmp_path / "task" / "adapter_config.json"
    about = read(path)
    edit(path, config={**about["config"], name: change})
    with pytest.raises(CheckpointError, match=f"adapter_config.json has {name} 1.*, and the weights beside it hold no"):
        read_source(tmp_path / "task")


def test_one_of_a_union(tmp_path: Path):
    saved(tmp_path / "task", adapters.ConfigUnion(adapters.SeqBnConfig(), adapters.LoRAConfig(r=4)))
    path = tmp_path / "task" / "adapter_config.json"
    config = read(path)["config"]
    config["configs"][1]["r"] = 10**7
    edit(path, config=config)
    with pytest.raises(CheckpointError, match="has r 10000000, and the weights beside it hold no such size"):
        read_source(tmp_path / "task")


@pytest.mark.parametrize("name", ["layers", "num_labels"])
def test_a_head(tmp_path: Path, name: str):
    saved(tmp_path / "task", CONFIGS["LoRA"])
    path = tmp_path / "task" / "head_config.json"
    edit(path, config={**read(path)["config"], name: 10**9})
    with pytest.raises(
        CheckpointError, match=f"head_config.json has {name} 1000000000, and the weights beside it hold"
    ):
        read_source(tmp_path / "task")


def read(path: Path) -> dict[str, Any]:
    found = json_object(path)
    assert found is not None
    return found

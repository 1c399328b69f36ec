"""Settings of PEFT that would take ages, or all memory, end in one sentence before PEFT sees them."""

from pathlib import Path
from typing import Any

import peft
import pytest
from tests.compiler.sources.test_peft import METHODS, adapted, same
from tests.json_files import edit

from coda_compile.errors import CompileError
from coda_compile.sources import peft_settings, read_source
from coda_models.errors import CheckpointError, UnsupportedModelError

AGES = r"(([a-z.]+)+)+!"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    adapted(tmp_path / "lora", METHODS["LoRA"]("SEQ_CLS"))
    return tmp_path / "lora"


@pytest.mark.parametrize(
    "changes",
    [{"target_modules": AGES}, {"exclude_modules": AGES}, {"rank_pattern": {AGES: 4}}, {"layers_pattern": [AGES]}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_pattern_that_takes_ages(lora: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peft_settings, "_SECONDS", 0.5)
    edit(lora / "adapter_config.json", **changes)
    with pytest.raises(CompileError, match="adapter_config.json has patterns that take ages to match, among"):
        read_source(lora)


def test_patterns_that_take_no_time_are_peft_s_own_affair(tmp_path: Path):
    pattern = r".*\.(query|value)$"
    same(tmp_path / "a", adapted(tmp_path / "a", peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=pattern)))


@pytest.mark.parametrize("changes", [{"r": 10**7}, {"rank_pattern": {"query": 10**7}}, {"r": 1e300}], ids=str)
def test_a_rank_that_no_weights_have(lora: Path, changes: dict[str, Any]):
    edit(lora / "adapter_config.json", **changes)
    with pytest.raises(
        CheckpointError, match=r"has (r|rank_pattern) 1(0{7}|e\+300), and the weights beside it have no"
    ):
        read_source(lora)


@pytest.mark.parametrize("key", ["num_virtual_tokens", "token_dim", "num_layers"])
def test_a_prompt_that_no_weights_have(tmp_path: Path, key: str):
    adapted(tmp_path / "prefix", METHODS["prefix"]("SEQ_CLS"))
    edit(tmp_path / "prefix" / "adapter_config.json", **{key: 10**7})
    with pytest.raises(CheckpointError, match=f"has {key} 10000000, and the weights beside it have no such size"):
        read_source(tmp_path / "prefix")


@pytest.mark.parametrize("layers", [[[0, 2], [1, 2]], [[0, 10**9]]])
def test_repeated_layers(lora: Path, layers: list[list[int]]):
    edit(lora / "adapter_config.json", layer_replication=layers)
    with pytest.raises(
        UnsupportedModelError, match=r"repeats layers of its base \(layer_replication\): train one that"
    ):
        read_source(lora)

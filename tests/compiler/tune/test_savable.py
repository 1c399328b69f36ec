"""What a checkpoint cannot hold is refused before anything is fitted, by its name."""

from pathlib import Path

import pytest
import torch
from tests.compiler.sources.library_adapters import CONFIGS, saved
from tests.compiler.sources.test_adapterhub_heads import HEADS
from tests.compiler.sources.test_peft import METHODS, adapted
from tests.conftest import TINY, tiny_backbone, tiny_coda

from coda_compile.errors import CompileError
from coda_compile.sources import read_source
from coda_compile.tune import savable
from coda_compile.tune.savable import check_savable
from coda_models import CodaConfig, convert
from coda_models.config import TASKS
from coda_models.errors import UnsupportedModelError


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", sorted(TINY))
def test_models_of_transformers_and_dense_adapters_can_be_saved(kind: str, task: str):
    for bottleneck in (0, 8):
        settings = CodaConfig(reduction=1, bottleneck=bottleneck, task=task)
        check_savable(tiny_coda(kind, settings), "model")


@pytest.mark.parametrize("method", ["LoRA", "LoRA with biases", "IA3", "P-tuning", "prompt", "prefix"])
def test_what_peft_learns_can_be_saved(method: str, tmp_path: Path):
    adapted(tmp_path / "m", METHODS[method]("SEQ_CLS"))
    check_savable(read_source(tmp_path / "m").model, "PEFT adapter")


@pytest.mark.parametrize("config", list(CONFIGS))
def test_what_the_adapters_library_learns_can_be_saved(config: str, tmp_path: Path):
    saved(tmp_path / "m", CONFIGS[config])
    check_savable(read_source(tmp_path / "m").model, "AdapterHub adapter")


@pytest.mark.parametrize("head", list(HEADS))
def test_heads_of_the_adapters_library_can_be_saved(head: str, tmp_path: Path):
    saved(tmp_path / "m", CONFIGS["LoRA"], head=HEADS[head][1])
    check_savable(read_source(tmp_path / "m").model, "AdapterHub adapter")


def test_a_head_that_no_configuration_speaks_of_is_refused():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    model.head = torch.nn.Sequential(model.head, torch.nn.Linear(3, 3))
    message = r"this model cannot be routed, a checkpoint has no place for 'head\..*' as this model has it: compile it"
    with pytest.raises(UnsupportedModelError, match=message):
        check_savable(model, "model")


def test_a_model_that_would_come_back_as_another_one(monkeypatch: pytest.MonkeyPatch):
    """Parts of the same shapes that compute something else."""
    model = convert(tiny_backbone("bert"), CodaConfig(reduction=1, bottleneck=0))
    pooler = next(module for module in model.head.modules() if isinstance(module, torch.nn.Tanh))
    monkeypatch.setattr(pooler, "forward", lambda x: x.relu())
    with pytest.raises(CompileError, match="would not compute what its original does"):
        savable.check_savable(model, "model")

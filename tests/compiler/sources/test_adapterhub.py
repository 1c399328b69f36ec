"""Folders that the adapters library saved compute what its own models do, in torch and compiled, or are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
import torch
from adapters.composition import Average, Fuse, Parallel, Stack
from tests.compiler.sources.library_adapters import CONFIGS, library_model, randomise, saved
from tests.compiler.sources.test_peft import answers, same, texts
from tests.conftest import tiny_backbone
from tests.json_files import edit

from coda_compile import compile
from coda_compile.errors import CompileError, OptionError
from coda_compile.inspect.cost import dense_multiply_adds
from coda_compile.sources import read_source
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_targets import Bundle

FAMILIES = ("bert", "electra", "roberta", "xlm-roberta", "distilbert")


@pytest.mark.parametrize("config", list(CONFIGS))
def test_what_is_read_computes_what_the_library_does(tmp_path: Path, config: str):
    same(tmp_path / "task", saved(tmp_path / "task", CONFIGS[config]))


@pytest.mark.parametrize("config", ["Houlsby", "parallel", "LoRA", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_library(tmp_path: Path, family: str, config: str):
    same(tmp_path / "task", saved(tmp_path / "task", CONFIGS[config], family))


def stacked(folder: Path, composition: Any = None) -> Any:
    folder.mkdir()
    model = library_model(folder.with_name(f"{folder.name}-base"))
    model.add_adapter("language", config=CONFIGS["Pfeiffer with an invertible adapter"])
    model.add_adapter("task", config=CONFIGS["residual behind the sum"])
    model.add_classification_head("task", num_labels=3)
    composition = composition or Stack("language", "task")
    if isinstance(composition, Fuse):
        model.add_adapter_fusion(composition)
    model.active_adapters = composition
    randomise(model)
    model.eval().save_adapter_setup(str(folder), composition)
    return model


def test_a_stack_of_adapters(tmp_path: Path):
    same(tmp_path / "stack", stacked(tmp_path / "stack"))


def test_a_lora_in_another_precision_than_its_base(tmp_path: Path):
    """The library runs it where both are half, or both float."""
    eager = saved(tmp_path / "task", adapters.LoRAConfig(r=4, dtype="float16"))
    same(tmp_path / "task", eager.float())


@pytest.mark.parametrize("residual", [None, []])
def test_a_residual_that_is_as_good_as_false(tmp_path: Path, residual: Any):
    eager = saved(tmp_path / "task", CONFIGS["residual behind the norm"])
    path = tmp_path / "task" / "adapter_config.json"
    edit(path, config={**json.loads(path.read_text())["config"], "residual_before_ln": residual})
    same(tmp_path / "task", eager)


def test_what_the_library_itself_cannot_run(tmp_path: Path):
    glow = adapters.SeqBnConfig(reduction_factor=8, inv_adapter="glow", inv_adapter_reduction_factor=2)
    saved(tmp_path / "task", glow)
    with pytest.raises(UnsupportedModelError, match="^the adapters library itself cannot run this model, so there is"):
        read_source(tmp_path / "task")


@pytest.mark.parametrize(
    ("composition", "message"),
    [
        (Fuse("language", "task"), "composition Fuse .* cannot be compiled: AdapterFusion's attention has no compiled"),
        (Parallel("language", "task"), "composition Parallel .*: several answers to one text are several bundles"),
        (Average("language", "task", weights=[0.5, 0.5]), "composition Average .*: average the weights first"),
        (Stack(Average("language", "task", weights=[0.5, 0.5])), "composition Average"),
    ],
)
def test_other_compositions_name_the_way_out(tmp_path: Path, composition: Any, message: str):
    stacked(tmp_path / "setup", composition)
    with pytest.raises(UnsupportedModelError, match=message):
        read_source(tmp_path / "setup")


@pytest.mark.parametrize("config", ["Houlsby", "prefix and parallel"])
def test_what_is_compiled_computes_what_the_library_does(tmp_path: Path, config: str):
    """On shapes that the export never saw."""
    eager = saved(tmp_path / "task", CONFIGS[config])
    bundle = compile(tmp_path / "task", output=tmp_path / "bundle")
    for batch, tokens in ((1, 9), (3, 17), (2, bundle.manifest.signature.max_length)):
        ids, mask = texts(batch, tokens)
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        seen = Bundle(bundle.folder, threads=1).run(inputs)["logits"]
        np.testing.assert_allclose(seen, answers(eager, ids, mask).numpy(), atol=1e-5, rtol=1e-5)
    assert bundle.manifest.layers[0].bottleneck == 8
    prefix = {"Houlsby": 0, "prefix and parallel": 3}[config]
    assert [layer.prefix for layer in bundle.manifest.layers] == [prefix] * 2
    by_token = 4 * 32**2 + 2 * 32 * 48 + 2 * 32 * 8
    assert dense_multiply_adds(bundle.manifest, 10) == 2 * (10 * by_token + 2 * 10 * (10 + prefix) * 32)


def test_layers_left_out_have_no_trace(tmp_path: Path):
    saved(tmp_path / "task", CONFIGS["layers left out"])
    first, second = read_source(tmp_path / "task").model.coda_layers()
    assert first.block.light_width == 0
    assert second.block.light_width == 8


@pytest.fixture
def task(tmp_path: Path) -> Path:
    saved(tmp_path / "task", CONFIGS["Houlsby"])
    return tmp_path / "task"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (adapters.UniPELTConfig(), "gates that are means over padding too"),
        (adapters.CompacterConfig(reduction_factor=4, phm_dim=2), "has Compacter's PHM layers"),
        (
            adapters.PromptTuningConfig(prompt_length=3),
            "the method 'prompt_tuning' of .* use bottlenecks, LoRA, prefix-t",
        ),
        (adapters.LoReftConfig(), "the method 'reft' of"),
    ],
)
def test_methods_without_a_compiled_form(tmp_path: Path, config: Any, message: str):
    saved(tmp_path / "task", config)
    with pytest.raises(UnsupportedModelError, match=message):
        read_source(tmp_path / "task")


def test_safetensors(tmp_path: Path):
    eager = saved(tmp_path / "task", CONFIGS["Pfeiffer"])
    shutil.rmtree(tmp_path / "task")
    (tmp_path / "task").mkdir()
    eager.save_adapter(str(tmp_path / "task"), "task", use_safetensors=True)
    same(tmp_path / "task", eager)


def test_two_stacked_loras_are_refused(tmp_path: Path):
    folder = tmp_path / "stack"
    folder.mkdir()
    model = library_model(tmp_path / "stack-base")
    for name in ("a", "b"):
        model.add_adapter(name, config=CONFIGS["LoRA"])
    model.save_adapter_setup(str(folder), Stack("a", "b"))
    with pytest.raises(UnsupportedModelError, match="of the stacked adapters a, b are LoRA: merge all but one first"):
        read_source(folder)


def test_the_base_can_be_told(task: Path, tmp_path: Path):
    moved = Path(shutil.move(tmp_path / "task-base", tmp_path / "elsewhere"))
    assert read_source(task, backbone=str(moved)).kind == "AdapterHub adapter"
    edit(task / "adapter_config.json", model_name=None)
    with pytest.raises(OptionError, match="names no base model: pass its folder as backbone"):
        read_source(task)


@pytest.mark.parametrize(("key", "value"), [("model_type", "roberta"), ("hidden_size", 64)])
def test_adapter_of_another_base(task: Path, key: str, value: Any):
    edit(task / "adapter_config.json", **{key: value})
    with pytest.raises(OptionError, match=f"was trained on a base model with {key} {value!r}, but .* has"):
        read_source(task)


def test_base_that_the_library_does_not_know(task: Path, tmp_path: Path):
    tiny_backbone("mpnet", "feature-extraction").save_pretrained(tmp_path / "mpnet")
    edit(task / "adapter_config.json", model_type=None)
    with pytest.raises(UnsupportedModelError, match="the adapters library has no model of type 'mpnet'"):
        read_source(task, backbone=str(tmp_path / "mpnet"))


def test_absent_base(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ask(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("coda_models.backbone.HfApi.model_info", ask)
    shutil.rmtree(tmp_path / "task-base")
    with pytest.raises(OptionError, match="pass its folder as backbone"):
        read_source(task)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "pytorch_adapter.bin"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def test_missing_extra_and_bad_tensors(task: Path):
    whole = (task / "pytorch_adapter.bin").read_bytes()
    rewrite(task, lambda tensors: tensors.pop(min(tensors)))
    with pytest.raises(CheckpointError, match=r"the weights in .* lack '.*adapters.*': save the adapter again"):
        read_source(task)
    (task / "pytorch_adapter.bin").write_bytes(whole)
    name = "bert.encoder.layer.0.output.adapters.task.more.weight"
    rewrite(task, lambda tensors: tensors.update({name: torch.ones(1)}))
    with pytest.raises(CheckpointError, match="have, beyond what its config speaks of, '.*more"):
        read_source(task)
    (task / "pytorch_adapter.bin").write_bytes(whole)
    rewrite(task, lambda tensors: tensors[min(tensors)].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="holds NaN or infinite weights"):
        read_source(task)
    (task / "pytorch_adapter.bin").write_bytes(whole)
    rewrite(task, lambda tensors: tensors.update({min(tensors): torch.ones(7)}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_source(task)
    (task / "pytorch_adapter.bin").write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_source(task)


def test_pickled_code_does_not_run(task: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Trap()}, task / "pytorch_adapter.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_source(task)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_damaged_configuration(task: Path, text: str):
    (task / "adapter_config.json").write_text(text)
    with pytest.raises(CompileError, match=r"adapter_config\.json is damaged: it should be an adapter configuration"):
        read_source(task)


@pytest.mark.parametrize("config", [None, 3, []])
def test_configuration_without_a_method(task: Path, config: Any):
    edit(task / "adapter_config.json", config=config)
    with pytest.raises(CheckpointError, match="is damaged: it should hold the adapter's config"):
        read_source(task)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({}, "is damaged: it should say how adapters are composed"),
        ({"adapter_setup": {"type": "Stack", "children": []}}, "should name the folders of its adapters"),
        (
            {"adapter_setup": {"type": "Stack", "children": [{"type": "single", "children": ["../task"]}]}},
            "should name",
        ),
        ({"adapter_setup": {"type": "Stack", "children": [{"type": "single", "children": [".."]}]}}, "should name"),
        ({"adapter_setup": {"type": "Stack", "children": [{"type": "single", "children": []}]}}, "should name"),
        ({"adapter_setup": {"type": "Stack", "children": ["a"]}}, "should say how"),
    ],
)
def test_damaged_setup(tmp_path: Path, setup: dict[str, Any], message: str):
    (tmp_path / "adapter_setup.json").write_text(json.dumps(setup))
    with pytest.raises(CheckpointError, match=message):
        read_source(tmp_path)


def test_a_model_that_would_compute_something_else_is_refused(task: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.sources.adapterhub_parts.copy_scaled", lambda linear, into, by: None)
    with pytest.raises(CompileError, match="would not compute what the adapters library does"):
        read_source(task)

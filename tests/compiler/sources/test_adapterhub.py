"""Folders that the adapters library saved compute what its own models do, in torch and compiled, or are refused."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
import torch
from adapters.composition import Average, Fuse, Parallel, Stack
from tests.compiler.sources.test_peft import answers, same, texts
from tests.conftest import tiny_backbone

from coda_compile import compile
from coda_compile.errors import CompileError
from coda_compile.inspect.cost import dense_multiply_adds
from coda_compile.sources import read_source
from coda_models.errors import BackboneError, CheckpointError, UnsupportedModelError
from coda_targets import Bundle

CONFIGS: dict[str, Any] = {
    "Houlsby": adapters.DoubleSeqBnConfig(reduction_factor=8),
    "Pfeiffer": adapters.SeqBnConfig(reduction_factor=8),
    "parallel": adapters.ParBnConfig(reduction_factor=4),
    "Pfeiffer with an invertible adapter": adapters.SeqBnInvConfig(reduction_factor=8),
    "another activation and size for each layer": adapters.DoubleSeqBnConfig(
        non_linearity="gelu_new", reduction_factor={"0": 4, "default": 16}
    ),
    "leaky": adapters.SeqBnConfig(non_linearity="leakyrelu", reduction_factor=8),
    "a learned scale": adapters.ParBnConfig(scaling="learned", reduction_factor=8),
    "a scale for each channel": adapters.SeqBnConfig(scaling="channel", reduction_factor=8),
    "norms of its own": adapters.SeqBnConfig(ln_before=True, ln_after=True, reduction_factor=8),
    "norm behind its residual": adapters.SeqBnConfig(
        ln_after=True, adapter_residual_before_ln=True, reduction_factor=8
    ),
    "residual behind the sum": adapters.SeqBnConfig(residual_before_ln="post_add", reduction_factor=8),
    "residual behind the norm": adapters.SeqBnConfig(residual_before_ln=False, reduction_factor=8),
    "no norm behind it": adapters.SeqBnConfig(original_ln_after=False, reduction_factor=8),
    "layers left out": adapters.DoubleSeqBnConfig(leave_out=[0], reduction_factor=8),
    "LoRA": adapters.LoRAConfig(r=4, alpha=8, intermediate_lora=True, output_lora=True),
    "IA3": adapters.IA3Config(),
    "a LoRA that scales": adapters.LoRAConfig(r=1, composition_mode="scale", alpha=2, init_weights="ia3"),
    "DoRA": adapters.DoRAConfig(r=4, alpha=8, intermediate_lora=True),
    "VeRA": adapters.VeraConfig(r=4),
    "prefix": adapters.PrefixTuningConfig(prefix_length=5, bottleneck_size=16),
    "flat prefix": adapters.PrefixTuningConfig(prefix_length=5, flat=True),
    "prefix and parallel": adapters.MAMConfig(
        adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=16), adapters.ParBnConfig(reduction_factor=4)
    ),
}
SEVERAL = "multi_label_classification"
FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The library says through a logger of its own what is not active yet."""
    logger = logging.getLogger("adapters")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def library_model(base: Path, family: str = "bert") -> Any:
    if not base.exists():
        model = tiny_backbone("roberta" if family == "xlm-roberta" else family, "feature-extraction")
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "norm" not in name.lower():  # as every trained one has
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(base)
        if family == "xlm-roberta":
            edit(base / "config.json", model_type="xlm-roberta")
    return adapters.AutoAdapterModel.from_pretrained(base)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def randomise(model: Any) -> None:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("adapters.", "loras", "prefix_tuning", "heads", "invertible")):
            torch.nn.init.normal_(parameter, std=0.3)


def saved(folder: Path, config: Any, family: str = "bert", head: Callable[[Any], None] | None = None) -> Any:
    """A library model with one adapter of random weights, saved in ``folder`` on a base in ``folder``-base."""
    folder.mkdir()
    model = library_model(folder.with_name(f"{folder.name}-base"), family)
    model.add_adapter("task", config=config)
    if head is None:
        model.add_classification_head("task", num_labels=3)
    else:
        head(model)
    model.active_adapters = "task"
    randomise(model)
    model.eval().save_adapter(str(folder), "task")
    return model


@pytest.mark.parametrize("config", list(CONFIGS))
def test_what_is_read_computes_what_the_library_does(tmp_path: Path, config: str):
    same(tmp_path / "task", saved(tmp_path / "task", CONFIGS[config]))


@pytest.mark.parametrize("config", ["Houlsby", "parallel", "LoRA", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_library(tmp_path: Path, family: str, config: str):
    same(tmp_path / "task", saved(tmp_path / "task", CONFIGS[config], family))


HEADS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "one layer": ("sequence-classification", lambda m: m.add_classification_head("task", num_labels=2, layers=1)),
    "with the pooler": ("sequence-classification", lambda m: m.add_classification_head("task", use_pooler=True)),
    "several labels": ("sequence-classification", lambda m: m.add_classification_head("task", multilabel=True)),
    "tags": ("token-classification", lambda m: m.add_tagging_head("task", num_labels=4)),
    "none": ("feature-extraction", lambda m: None),
}


@pytest.mark.parametrize("head", list(HEADS))
def test_heads(tmp_path: Path, head: str):
    task, add = HEADS[head]
    same(tmp_path / "task", saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=add))
    assert read_source(tmp_path / "task").model.coda_config.task == task


@pytest.mark.parametrize(
    ("add", "problem_type"),
    [
        (lambda m: m.add_classification_head("task", num_labels=3), "single_label_classification"),
        (lambda m: m.add_classification_head("task", num_labels=3, multilabel=True), "multi_label_classification"),
        (lambda m: m.add_classification_head("task", num_labels=1), "regression"),
        (lambda m: m.add_tagging_head("task", num_labels=4), None),
    ],
)
def test_what_a_head_is_for(tmp_path: Path, add: Callable[[Any], None], problem_type: str | None):
    """As the library's own loss has it; what the base's configuration says of another head is no answer."""
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=add)
    edit(tmp_path / "task-base" / "config.json", problem_type="regression" if problem_type is None else SEVERAL)
    found = read_source(tmp_path / "task").model.hf_config
    assert found.problem_type == problem_type
    assert list(found.id2label.values()) == [f"LABEL_{i}" for i in range(found.num_labels)]


def test_a_head_that_does_not_name_its_classes(tmp_path: Path):
    saved(tmp_path / "task", CONFIGS["Pfeiffer"])
    path = tmp_path / "task" / "head_config.json"
    head = json.loads(path.read_text())
    edit(path, config={**head["config"], "label2id": {"bad": 0, "good": 1}})
    with pytest.raises(CheckpointError, match="does not name each of its 3 classes once"):
        read_source(tmp_path / "task")


def test_labels(tmp_path: Path):
    names = {0: "bad", 1: "good"}
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=lambda m: m.add_classification_head("task", id2label=names))
    assert read_source(tmp_path / "task").model.hf_config.id2label == names


def test_static_heads(tmp_path: Path):
    """A plain classifier that adapters.init changed saves its head as well."""
    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapters.init(model)
    model.add_adapter("task", config=CONFIGS["Houlsby"])
    model.active_adapters = "task"
    randomise(model)
    (tmp_path / "task").mkdir()
    model.eval().save_adapter(str(tmp_path / "task"), "task", with_head=True)
    same(tmp_path / "task", model)
    assert read_source(tmp_path / "task").model.hf_config.problem_type is None
    edit(tmp_path / "base" / "config.json", problem_type=SEVERAL)
    assert read_source(tmp_path / "task").model.hf_config.problem_type == SEVERAL
    model.config.problem_type = "single_label_classification"
    model.config.save_pretrained(tmp_path / "task")
    assert read_source(tmp_path / "task").model.hf_config.problem_type == "single_label_classification"


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


def two_heads(folder: Path, head_setup: Any) -> Any:
    """A stack whose lower adapter alone has a head, and one more head that belongs to none; saved with a head setup."""
    folder.mkdir()
    model = library_model(folder.with_name(f"{folder.name}-base"))
    for name in ("lower", "upper"):
        model.add_adapter(name, config=CONFIGS["Pfeiffer"])
    model.add_classification_head("lower", num_labels=3)
    model.add_tagging_head("other", num_labels=4)
    model.active_adapters = Stack("lower", "upper")
    randomise(model)
    model.eval().save_adapter_setup(str(folder), model.active_adapters, head_setup=head_setup)
    return model


@pytest.mark.parametrize("setup", ["lower", "other", ["other"]])
def test_the_head_that_a_setup_asks_for(tmp_path: Path, setup: Any):
    """As load_adapter_setup of the library activates it."""
    eager = two_heads(tmp_path / "stack", setup)
    eager.active_head = setup
    same(tmp_path / "stack", eager)
    task = "sequence-classification" if setup == "lower" else "token-classification"
    assert read_source(tmp_path / "stack").model.coda_config.task == task


def test_a_setup_that_asks_for_no_head_gives_states(tmp_path: Path):
    two_heads(tmp_path / "stack", None)
    assert read_source(tmp_path / "stack").model.coda_config.task == "feature-extraction"


def test_the_head_of_a_class_that_brings_it(tmp_path: Path):
    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    from transformers import AutoModelForSequenceClassification

    eager = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapters.init(eager)
    eager.add_adapter("task", config=CONFIGS["Pfeiffer"])
    eager.active_adapters = Stack("task")
    randomise(eager)
    (tmp_path / "stack").mkdir()
    eager.eval().save_adapter_setup(str(tmp_path / "stack"), Stack("task"), head_setup=True)
    same(tmp_path / "stack", eager)


@pytest.mark.parametrize("setup", [["lower", "other"], Stack("lower", "other")])
def test_several_heads_are_refused(tmp_path: Path, setup: Any):
    two_heads(tmp_path / "stack", setup)
    with pytest.raises(UnsupportedModelError, match="the head_setup .* cannot be compiled: a bundle has one head"):
        read_source(tmp_path / "stack")


def test_a_head_that_is_not_there_or_not_whole(tmp_path: Path):
    two_heads(tmp_path / "stack", "other")
    path = tmp_path / "stack" / "other" / "pytorch_model_head.bin"
    whole = torch.load(path, weights_only=True)
    torch.save({name: tensor for name, tensor in whole.items() if not name.endswith("bias")}, path)
    with pytest.raises(CheckpointError, match=r"the weights in .*other lack 'heads\.other.*bias', or have it beyond"):
        read_source(tmp_path / "stack")
    for setup in ("../stack-base", "absent"):
        edit(tmp_path / "stack" / "adapter_setup.json", head_setup=setup)
        with pytest.raises((CheckpointError, UnsupportedModelError), match="cannot be (read|compiled)"):
            read_source(tmp_path / "stack")


def test_a_lora_in_another_precision_than_its_base(tmp_path: Path):
    """The library runs it where both are half, or both float."""
    eager = saved(tmp_path / "task", adapters.LoRAConfig(r=4, dtype="float16"))
    same(tmp_path / "task", eager.float())


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
    for batch, tokens in ((1, 9), (3, 17), (2, bundle.manifest.max_tokens)):
        ids, mask = texts(batch, tokens)
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        seen = Bundle(bundle.folder, threads=1).run(inputs)["logits"]
        np.testing.assert_allclose(seen, answers(eager, ids, mask).numpy(), atol=1e-5, rtol=1e-5)
    assert bundle.manifest.layers[0].bottleneck == 8
    assert dense_multiply_adds(bundle.manifest, 10) == 2 * (10 * (4 * 32**2 + 2 * 32 * 48 + 2 * 32 * 8) + 2 * 100 * 32)


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


def test_heads_without_a_compiled_form(tmp_path: Path):
    saved(tmp_path / "task", CONFIGS["Pfeiffer"], head=lambda m: m.add_qa_head("task"))
    with pytest.raises(UnsupportedModelError, match="a head of type 'question_answering' is not supported: use one of"):
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
    with pytest.raises(CompileError, match="names no base model: pass its folder with --backbone PATH"):
        read_source(task)


@pytest.mark.parametrize(("key", "value"), [("model_type", "roberta"), ("hidden_size", 64)])
def test_adapter_of_another_base(task: Path, key: str, value: Any):
    edit(task / "adapter_config.json", **{key: value})
    with pytest.raises(CheckpointError, match=f"was trained on a base model with {key} {value!r}, but .* has"):
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
    with pytest.raises(BackboneError, match="pass its folder with --backbone PATH"):
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
    monkeypatch.setattr("coda_compile.sources.adapterhub.scaled", lambda linear, by: torch.nn.Linear(4, 32))
    with pytest.raises(CompileError, match="would not compute what the adapters library does"):
        read_source(task)

"""Folders that PEFT saved compute what PEFT's own models do, in torch and compiled, or are refused."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_backbone
from tests.json_files import edit

from coda_compile import compile
from coda_compile.errors import CompileError, OptionError
from coda_compile.precision import get_precision
from coda_compile.precision.layers.embedding import Int8Embedding
from coda_compile.sources import read_source
from coda_models import backbone
from coda_models.backbone import load_backbone
from coda_models.errors import CheckpointError, UnsupportedModelError
from coda_targets import Bundle

SOME = ["query", "value", "dense"]
METHODS: dict[str, Callable[[str], peft.PeftConfig]] = {
    "LoRA": lambda task: peft.LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules=SOME),
    "rsLoRA, ranks and alphas by module": lambda task: peft.LoraConfig(
        task_type=task, r=4, use_rslora=True, rank_pattern={"query": 2}, alpha_pattern={"value": 3}
    ),
    "DoRA": lambda task: peft.LoraConfig(task_type=task, r=4, use_dora=True, target_modules=SOME),
    "LoRA with biases": lambda task: peft.LoraConfig(task_type=task, r=4, bias="all"),
    "LoRA of embeddings": lambda task: peft.LoraConfig(
        task_type=task, r=4, target_modules=["word_embeddings", "query"]
    ),
    "LoRA and a norm trained whole": lambda task: peft.LoraConfig(
        task_type=task, r=4, modules_to_save=["LayerNorm", "classifier"]
    ),
    "IA3": lambda task: peft.IA3Config(task_type=task),
    "AdaLoRA": lambda task: peft.AdaLoraConfig(task_type=task, target_modules=SOME, total_step=10),
    "LoHa": lambda task: peft.LoHaConfig(task_type=task, target_modules=SOME),
    "LoKr": lambda task: peft.LoKrConfig(task_type=task, target_modules=SOME),
    "OFT": lambda task: peft.OFTConfig(task_type=task, target_modules=["query"], oft_block_size=8, r=0),
    "BOFT": lambda task: peft.BOFTConfig(task_type=task, target_modules=["query"], boft_block_size=4),
    "VeRA": lambda task: peft.VeraConfig(task_type=task, target_modules=["query", "value"], r=4),
    "FourierFT": lambda task: peft.FourierFTConfig(task_type=task, target_modules=["query"], n_frequency=50),
    "HRA": lambda task: peft.HRAConfig(task_type=task, target_modules=["query"]),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5),
    "prefix through an MLP": lambda task: peft.PrefixTuningConfig(
        task_type=task, num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16
    ),
    "P-tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=5, encoder_hidden_size=16),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5),
}
FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "roberta-prelayernorm")
PROJECTIONS = {"distilbert": ["q_lin", "v_lin"], "mpnet": ["q", "v"], "modernbert": ["Wqkv", "Wo", "Wi"]}
TASKS = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "feature-extraction": "FEATURE_EXTRACTION",
}


def adapted(
    folder: Path, config: peft.PeftConfig, family: str = "bert", task: str = "sequence-classification"
) -> peft.PeftModel:
    """A PEFT model with random weights, saved in ``folder`` on a base saved in ``folder``-base."""
    base = folder.with_name(f"{folder.name}-base")
    tiny_backbone(family, task).save_pretrained(base)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load_backbone(base, task), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        model.eval().save_pretrained(folder)
        return model


def answers(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model(input_ids=ids, attention_mask=mask)
    return output.logits if "logits" in output else output.last_hidden_state


def texts(batch: int = 3, tokens: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a ragged mask, padding 0."""
    ids = 4 + torch.arange(batch * tokens).reshape(batch, tokens) * 7 % 90
    mask = torch.ones_like(ids)
    for i in range(1, batch):
        mask[i, tokens - 4 * i :] = 0
    return ids * mask, mask


def same(folder: Path, eager: Any) -> None:
    """A ragged batch through what is read, against each text alone through the library's own model."""
    ids, mask = texts()
    together = answers(read_source(folder).model, ids, mask)
    for row, valid, seen in zip(ids, mask.bool(), together, strict=True):
        alone = row[valid].unsqueeze(0)
        wanted = answers(eager, alone, torch.ones_like(alone))[0]
        torch.testing.assert_close(seen[valid] if seen.dim() == 2 else seen, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_what_is_read_computes_what_peft_does(tmp_path: Path, method: str):
    eager = adapted(tmp_path / "peft", METHODS[method]("SEQ_CLS"))
    same(tmp_path / "peft", eager)


@pytest.mark.parametrize("family", [*FAMILIES, "electra", "modernbert"])
def test_lora_in_every_family(tmp_path: Path, family: str):
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=PROJECTIONS.get(family, ["query", "value"]))
    lora.modules_to_save = ["pre_classifier", "classifier"] if family == "distilbert" else None
    same(tmp_path / "lora", adapted(tmp_path / "lora", lora, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_in_every_family_that_has_a_place_for_them(tmp_path: Path, family: str):
    prompt = METHODS["prompt"]("SEQ_CLS")
    if family == "distilbert":
        prompt.token_dim, prompt.num_attention_heads, prompt.num_layers = 32, 4, 2
    same(tmp_path / "prompt", adapted(tmp_path / "prompt", prompt, family))


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "roberta-prelayernorm"])
def test_prefixes_in_every_family_that_has_a_place_for_them(tmp_path: Path, family: str):
    eager = adapted(tmp_path / "peft", METHODS["prefix"]("FEATURE_EXTRACTION"), family, "feature-extraction")
    same(tmp_path / "peft", eager)


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_prefixes_that_peft_cannot_run_itself(tmp_path: Path, family: str):
    adapted(tmp_path / "peft", METHODS["prefix"]("SEQ_CLS"), family)
    with pytest.raises(UnsupportedModelError, match=f"PEFT itself cannot run PREFIX_TUNING on this {family}"):
        read_source(tmp_path / "peft")


@pytest.mark.parametrize("method", ["LoRA", "prefix"])
@pytest.mark.parametrize("task", ["token-classification", "feature-extraction"])
def test_other_tasks(tmp_path: Path, method: str, task: str):
    eager = adapted(tmp_path / "peft", METHODS[method](TASKS[task]), task=task)
    same(tmp_path / "peft", eager)


@pytest.mark.parametrize(
    ("method", "task"),
    [
        ("LoRA", "sequence-classification"),
        ("LoRA", "feature-extraction"),
        ("prefix", "token-classification"),
        ("P-tuning", "sequence-classification"),
    ],
)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_two_kinds_of_tokens(tmp_path: Path, family: str, method: str, task: str):
    eager = adapted(tmp_path / "peft", METHODS[method](TASKS[task]), family, task)
    ids, mask = texts(2, 17)
    inputs = {"input_ids": ids[:1], "attention_mask": mask[:1], "token_type_ids": (torch.arange(17) > 5).long()[None]}
    with torch.inference_mode():
        seen, wanted = read_source(tmp_path / "peft").model(**inputs), eager(**inputs)
    key = "logits" if "logits" in wanted else "last_hidden_state"
    torch.testing.assert_close(seen[key], wanted[key], atol=1e-5, rtol=1e-5)


def test_kinds_of_tokens_that_peft_leaves_out(tmp_path: Path):
    """With a prefix for states it ignores them, with a warning, so a bundle does not ask for them."""
    eager = adapted(tmp_path / "peft", METHODS["prefix"]("FEATURE_EXTRACTION"), task="feature-extraction")
    assert "token_type_ids" not in read_source(tmp_path / "peft").model.signature.names
    ids, mask = texts(2, 17)
    with pytest.warns(UserWarning, match="Ignoring token type ids"), torch.inference_mode():
        typed = eager(input_ids=ids, attention_mask=mask, token_type_ids=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(typed, answers(eager, ids, mask))


@pytest.mark.parametrize("method", ["DoRA", "prefix through an MLP", "P-tuning"])
def test_what_is_compiled_computes_what_peft_does(tmp_path: Path, method: str):
    """On shapes that the export never saw; nothing of the method's own is left to compute."""
    eager = adapted(tmp_path / "peft", METHODS[method]("SEQ_CLS"))
    bundle = compile(tmp_path / "peft", output=tmp_path / "bundle")
    for batch, tokens in ((1, 1), (1, 2), (3, 17), (2, bundle.manifest.signature.max_length)):
        ids, mask = (
            texts(batch, tokens) if tokens > 8 else (torch.full((batch, tokens), 9), torch.ones(batch, tokens).long())
        )
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        seen = Bundle(bundle.folder, threads=1).run(inputs)["logits"]
        np.testing.assert_allclose(seen, answers(eager, ids, mask).numpy(), atol=1e-5, rtol=1e-5)


def test_prompted_embeddings_are_quantised_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapted(tmp_path / "peft", METHODS["prompt"]("SEQ_CLS"))
    model = read_source(tmp_path / "peft").model
    monkeypatch.setattr("coda_compile.precision.layers.replace._LARGE", 1000)
    get_precision("int8").quantise(model, (), True)
    assert any(isinstance(module, Int8Embedding) for module in model.embeddings.modules())


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    adapted(tmp_path / "peft", METHODS["LoRA"]("SEQ_CLS"))
    return tmp_path / "peft"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_weights_of_older_releases(lora: Path):
    expected = read_source(lora).model.state_dict()
    torch.save(load_file(lora / "adapter_model.safetensors"), lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()
    found = read_source(lora).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_number_of_labels_is_the_saved_heads(tmp_path: Path):
    """A base that is a bare encoder says nothing of it."""
    eager = adapted(tmp_path / "peft", METHODS["LoRA"]("SEQ_CLS"))
    base = tmp_path / "peft-base"
    shutil.rmtree(base)
    eager.unload().base_model.save_pretrained(base)  # fresh weights below would be caught by the comparison
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id")})
    )
    source = read_source(tmp_path / "peft")
    assert source.model.hf_config.num_labels == 3


def test_the_base_can_be_told(lora: Path, tmp_path: Path):
    moved = Path(shutil.move(tmp_path / "peft-base", tmp_path / "elsewhere"))
    with pytest.raises(OptionError, match=r"pass its folder as backbone"):
        read_source(lora)
    assert read_source(lora, backbone=str(moved)).kind == "PEFT LORA"
    edit(lora / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(OptionError, match=r"names no base model: pass its folder as backbone"):
        read_source(lora)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(backbone.HfApi, "model_info", ask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "POLY"}, "PEFT method 'POLY' of .* is not supported: use one of LORA, ADALORA"),
        ({"peft_type": ["LORA"]}, "is not supported: use one of LORA"),
        ({"task_type": "CAUSAL_LM"}, "task_type 'CAUSAL_LM' of .* is not supported: use one of SEQ_CLS, TOKEN_CLS"),
        ({"alora_invocation_tokens": [1, 2]}, "is an activated LoRA, which no weight can hold"),
        (
            {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
            "is an adapter of Megatron's layers: train one",
        ),
    ],
)
def test_configurations_that_cannot_be_compiled(lora: Path, changes: dict[str, Any], message: str):
    edit(lora / "adapter_config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        read_source(lora)


def test_quantised_base(lora: Path, tmp_path: Path):
    config = tmp_path / "peft-base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(UnsupportedModelError, match="is quantised: pass the one in float32, of an adapter as its"):
        read_source(lora)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_damaged_configuration(lora: Path, text: str):
    (lora / "adapter_config.json").write_text(text)
    with pytest.raises(CompileError, match=r"adapter_config\.json is damaged: it should be an adapter configuration"):
        read_source(lora)


def test_missing_tensor(lora: Path):
    rewrite(lora, lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)))
    with pytest.raises(CheckpointError, match=r"the weights in .* lack '.*lora_B.*': save the adapter again"):
        read_source(lora)


def test_extra_tensor(lora: Path):
    rewrite(lora, lambda tensors: tensors.update({"base_model.model.more": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"hold 'base_model\.model\.more', which adapter_config\.json does not"):
        read_source(lora)


def test_nan(lora: Path):
    rewrite(lora, lambda tensors: tensors[min(tensors)].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="holds NaN or infinite weights"):
        read_source(lora)


def test_adapter_of_another_base(lora: Path, tmp_path: Path):
    tiny_backbone("roberta").save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError):
        read_source(lora, backbone=str(tmp_path / "other"))
    wide = tiny_backbone("bert").config
    wide.hidden_size = 64
    backbone.build_backbone(wide, "sequence-classification").save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"does not fit the base model .*wide: Error\(s\) in .*: size mismatch"):
        read_source(lora, backbone=str(tmp_path / "wide"))


def test_weights_that_are_cut_off_or_absent(lora: Path):
    path = lora / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged or cut off"):
        read_source(lora)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors or adapter_model\.bin"):
        read_source(lora)


def test_pickled_code_does_not_run(lora: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (lora / "adapter_model.safetensors").unlink()
    torch.save({"weight": Trap()}, lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="holds Python code beside tensors and was not opened"):
        read_source(lora)
    assert not (tmp_path / "ran").exists()


def test_prompts_of_other_tasks_are_refused(tmp_path: Path):
    adapted(tmp_path / "peft", METHODS["prompt"]("TOKEN_CLS"), task="token-classification")
    with pytest.raises(UnsupportedModelError, match="prompts are for sequence-classification"):
        read_source(tmp_path / "peft")


def test_a_model_that_would_compute_something_else_is_refused(lora: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", lambda self: self.unload())
    with pytest.raises(CompileError, match="the converted model would not compute what PEFT does"):
        read_source(lora)


def test_without_the_library(lora: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(Exception, match=r'this needs peft, which is not installed: pip install "coda-compile\[peft\]"'):
        compile(lora, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()

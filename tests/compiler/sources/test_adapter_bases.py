"""An adapter's base is the one that its folder names, at the revision that it names, pooled as either folder says.

Comparing with the adapter's own library cannot tell a wrong base, which both would have: references are loaded by it alone.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import peft
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers.sentence_transformer import modules
from tests.conftest import example_inputs, tiny_backbone
from tests.json_files import edit
from tests.sentences import TEXTS, embedded, encoded, opened, save_sentence
from transformers import AutoModel, PreTrainedTokenizerFast

from coda_compile import compile
from coda_compile.sources import read_source
from coda_models.backbone import folder_of
from coda_ops.errors import CodaError

Hub = Any


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A function that puts folders into the local hub cache, as revisions of a name; no hub is in reach."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)

    def put(name: str, **revisions: Path) -> None:
        root = cache / f"models--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        for i, (revision, folder) in enumerate(revisions.items()):
            (root / "refs" / revision).write_text(f"{i}" * 40)
            shutil.copytree(folder, root / "snapshots" / (f"{i}" * 40))

    return put


def lora(folder: Path, base: str, **named: Any) -> Path:
    """A LoRA on a base, with lively weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            AutoModel.from_pretrained(base, **named), peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, **named)
        )
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.eval().save_pretrained(folder)
    return folder


def states(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    with torch.inference_mode():
        return model(**inputs).last_hidden_state


@pytest.mark.parametrize("revision", [None, "v1"])
def test_revision_of_a_base(tmp_path: Path, hub: Hub, tokenizer: PreTrainedTokenizerFast, revision: str | None):
    for seed, name in enumerate(("main", "v1")):
        tiny_backbone("bert", "feature-extraction", seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    hub("me/base", main=tmp_path / "main", v1=tmp_path / "v1")
    named = {} if revision is None else {"revision": revision}
    folder = lora(tmp_path / "lora", "me/base", **named)
    model = read_source(folder).model
    inputs = example_inputs(model, 2, 9)
    wanted = states(peft.AutoPeftModelForFeatureExtraction.from_pretrained(str(folder)).eval(), inputs)
    torch.testing.assert_close(states(model, inputs), wanted, atol=1e-5, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = peft.PeftModel.from_pretrained(tiny_backbone("bert", "feature-extraction", revision is None), folder)
    assert (states(other.eval(), inputs) - wanted).abs().max() > 0.1


def test_a_base_that_is_passed_has_no_revision(tmp_path: Path, hub: Hub, tokenizer: PreTrainedTokenizerFast):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path / "v1")
    hub("me/base", v1=tmp_path / "v1")
    folder = lora(tmp_path / "lora", "me/base", revision="v1")
    other = tiny_backbone("bert", "feature-extraction", 5)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    hub("me/other", main=tmp_path / "other")
    model = read_source(folder, backbone="me/other").model
    inputs = example_inputs(model, 2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = states(peft.PeftModel.from_pretrained(other, folder).eval(), inputs)
    torch.testing.assert_close(states(model, inputs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("revision", [3, "", ["v1"]])
def test_revision_that_is_none(tmp_path: Path, revision: Any):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path / "base")
    folder = lora(tmp_path / "lora", str(tmp_path / "base"))
    edit(folder / "adapter_config.json", revision=revision)
    with pytest.raises(CodaError, match="has revision .*: it should name a branch, tag or commit"):
        read_source(folder)


def test_modules_of_a_base_by_its_hub_name(tmp_path: Path, hub: Hub, tokenizer: PreTrainedTokenizerFast):
    """The reference is the base in sentence-transformers with PEFT's own model in the transformer's place."""
    base = save_sentence(tmp_path / "m", tokenizer, modules.Dense(32, 8), modules.Normalize(), pooling="cls")
    edit(base / "sentence_bert_config.json", max_seq_length=20)
    other = save_sentence(tmp_path / "other", tokenizer, pooling="max")
    hub("me/base", main=other, v1=base)
    folder = lora(tmp_path / "lora", "me/base", revision="v1")
    reference = opened(base)
    reference[0].model = peft.AutoPeftModelForFeatureExtraction.from_pretrained(str(folder)).eval()
    bundle = compile(folder, output=tmp_path / "b")
    np.testing.assert_allclose(embedded(bundle), encoded(reference), atol=3e-5)
    assert bundle.manifest.signature.max_length == 20


@pytest.mark.parametrize("base_pools", [None, "max"])
def test_modules_beside_an_adapter(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, base_pools: str | None):
    """As sentence-transformers saves a model that PEFT adapted; they stand above those of the base."""
    base = save_sentence(tmp_path / "base", tokenizer, pooling=base_pools or "mean")
    if base_pools is None:
        (base / "modules.json").unlink()
        shutil.rmtree(base / "1_Pooling")
    model = opened(base)
    model[1] = modules.Pooling(32, "lasttoken")
    model.append(modules.LayerNorm(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter(peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query", "value"]))
        torch.manual_seed(4)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(tmp_path / "lora"), create_model_card=False)
    edit(tmp_path / "lora" / "tokenizer_config.json", model_max_length=18)
    reference = shutil.copytree(tmp_path / "lora", tmp_path / "reference")
    shutil.copy(base / "config.json", reference)  # transformers looks for it before it opens a tokenizer
    wanted = encoded(opened(reference))
    bundle = compile(tmp_path / "lora", output=tmp_path / "b")
    np.testing.assert_allclose(embedded(bundle), wanted, atol=3e-5)
    np.testing.assert_allclose(encoded(opened(bundle.folder, backend="onnx")), wanted, atol=3e-5)
    assert bundle.manifest.signature.max_length == 18


def test_a_tokenizer_beside_an_adapter_has_a_say(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    base = save_sentence(tmp_path / "base", tokenizer)
    edit(base / "sentence_bert_config.json", max_seq_length=30)
    folder = lora(tmp_path / "lora", str(base))
    assert read_source(folder).model.signature.max_length == 30
    tokenizer.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", model_max_length=14)
    assert read_source(folder).model.signature.max_length == 14


def test_nothing_says_how_to_pool(tmp_path: Path):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path / "base")
    source = read_source(lora(tmp_path / "lora", str(tmp_path / "base")))
    assert source.kind == "PEFT LORA without a pooling, read by the mean of its tokens"
    assert source.model.coda_config.pooling == "mean"


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_adapters_of_adapterhub(tmp_path: Path, hub: Hub, tokenizer: PreTrainedTokenizerFast, where: str):
    """The reference is the library's own model, pooled by sentence-transformers."""
    base = save_sentence(tmp_path / "m", tokenizer, modules.Dense(32, 8), pooling="cls")
    bare = tmp_path / "m-base"
    hub("me/base", main=base if where == "base" else bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = adapters.AutoAdapterModel.from_pretrained("me/base")
        library.add_adapter("task", config=adapters.SeqBnConfig(reduction_factor=8))
        library.active_adapters = "task"
        torch.manual_seed(4)
        for name, parameter in library.named_parameters():
            if "adapters." in name:
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / "task"
        folder.mkdir()
        library.eval().save_adapter(str(folder), "task", with_head=False)
    if where == "adapter":
        for name in ("modules.json", "1_Pooling", "2_Dense"):
            (shutil.copytree if (base / name).is_dir() else shutil.copy)(base / name, folder / name)
    source = read_source(folder)
    reference = opened(base)
    inputs = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    with torch.inference_mode():
        features = {"token_embeddings": states(library, inputs), "attention_mask": inputs["attention_mask"]}
        wanted = reference[2](reference[1](features))["sentence_embedding"]
        got = source.model(**{name: inputs[name] for name in source.model.signature.names}).sentence_embedding
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert source.kind == "AdapterHub adapter"


def test_what_lies_beside_an_encoder(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """A hub is asked once, where the cache has no list of modules; what cannot be had is not there."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    hub("me/base", main=tmp_path / "m")
    assert folder_of(tmp_path / "m") == tmp_path / "m"
    assert folder_of("me/other") is None
    cached = folder_of("me/base")
    assert cached is not None
    asked = []

    def download(name: str, *, local_files_only: bool, **options: Any) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            (cached / "modules.json").write_text("[]")
        return str(cached)

    monkeypatch.setattr("coda_models.backbone.snapshot_download", download)
    assert folder_of("me/base") == cached
    assert folder_of("me/base") == cached
    assert asked == [True, False, True]

    def absent(name: str, *, local_files_only: bool, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        return str(cached)

    monkeypatch.setattr("coda_models.backbone.snapshot_download", absent)
    assert folder_of("me/base") == cached

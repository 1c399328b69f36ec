"""Checkpoints of models with learned parts, in every form; damaged descriptions are refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import example_inputs, tiny_backbone
from tests.models.parts import KINDS, descriptions, with_parts

from coda_models import CodaModel, load, save, save_pretrained
from coda_models.checkpoint import rebuilt
from coda_models.digest import tensor_digest
from coda_models.errors import CheckpointError, ConfigError
from coda_models.learned_parts import LearnedParts
from coda_ops import CodaError


def logits(model: CodaModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(**example_inputs(model, 2, 9)).logits


@pytest.mark.parametrize("routed", [{}, {"reduction": 2, "stand_in": 4, "bottleneck": 4}], ids=["dense", "routed"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_form_gives_the_model_back(kind: str, routed: dict[str, Any], tmp_path: Path):
    model = with_parts(KINDS[kind], **routed)
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    save(model, tmp_path / "whole.pt")
    save(model, tmp_path / "delta.pt", delta=True)
    save_pretrained(model, tmp_path / "folder")
    for name in ("whole.pt", "delta.pt", "folder"):
        again = load(tmp_path / name, backbone=tmp_path / "backbone" if name == "delta.pt" else None).model
        assert again.coda_config == model.coda_config
        assert again.signature == model.signature
        assert again.prompt_tokens == model.prompt_tokens
        assert again.trainable_names() == model.trainable_names()
        assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(rebuilt(model)), logits(model))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_delta_holds_what_was_learned_and_no_backbone(kind: str, tmp_path: Path):
    model = with_parts(KINDS[kind])
    save(model, tmp_path / "delta.pt", delta=True)
    held = set(torch.load(tmp_path / "delta.pt", weights_only=True)["state"])
    backbone = {f"layers.0.block.{part}.weight" for part in ("attention.query", "attention.out", "feed_forward.up")}
    assert held.isdisjoint(backbone)
    assert not any(name.endswith("word_embeddings.weight") for name in held)
    learned = [name for name in model.state_dict() if any(f".{part}" in name for part in ("after_", "prefix_"))]
    assert set(learned) <= held
    assert ("embeddings.prompt" in held) == (KINDS[kind].prompt > 0)
    assert any(".invertible." in name for name in held) == (KINDS[kind].invertible is not None)


@settings(max_examples=15, deadline=None)
@given(descriptions)
def test_whatever_is_described_comes_back(parts: LearnedParts):
    pooler = parts.head is not None and parts.head.pooler
    model = with_parts(parts, task="sequence-classification" if pooler or parts.prompt else "token-classification")
    again = rebuilt(model)
    assert again.coda_config == model.coda_config
    assert tensor_digest(again.state_dict()) == tensor_digest(model.state_dict())


def test_another_form_than_is_described_is_refused():
    model = with_parts(KINDS["bottlenecks"])
    model.coda_config = with_parts(KINDS["parallel and a prefix"]).coda_config
    with pytest.raises(CheckpointError, match=r"a checkpoint has no place for 'layers\.0\.block\.after_attention"):
        rebuilt(model)


Change = Callable[[dict[str, Any]], Any]
DAMAGE: list[tuple[str, Change, str]] = [
    ("bottlenecks", lambda parts: parts["layers"].pop(), "parts describe 1 layers but the model has 2"),
    ("bottlenecks", lambda parts: parts.update(surprise=1), "field 'surprise' of parts is unknown"),
    ("bottlenecks", lambda parts: parts["layers"][0]["after_attention"].clear(), "has an unknown tensor 'layers.0"),
    (
        "bottlenecks",
        lambda parts: parts["layers"][0]["after_attention"][0].update(width=5),
        "after_attention.adapters.0.down",
    ),
    ("bottlenecks", lambda parts: parts["layers"][0]["after_attention"][0].update(width=10**9), "width 1000000000"),
    ("bottlenecks", lambda parts: parts["layers"][0]["after_attention"][0].pop("width"), "lacks its field 'width'"),
    ("bottlenecks", lambda parts: parts["layers"][0]["after_attention"][0].update(norm_after=True), "it lacks 'layers"),
    ("parallel and a prefix", lambda parts: parts["layers"][1].update(prefix=2), "prefix_key' has shape [3, 32]"),
    ("prompt", lambda parts: parts.update(prompt=0), "it lacks 'embeddings.LayerNorm"),
    ("prompt", lambda parts: parts.update(prompt=66), "leave no room for a text in 66 positions"),
    ("prompt", lambda parts: parts.update(prompt=60000), "describes more than its 0.1 MB hold"),
    ("invertible", lambda parts: parts["invertible"].update(first=9), "embeddings.invertible.first.0"),
    ("head", lambda parts: parts["head"].update(layers=3), "it lacks 'head."),
    ("head", lambda parts: parts.update(head=None), "it lacks 'head."),
]


@pytest.mark.parametrize(("kind", "change", "message"), DAMAGE, ids=[message for *_, message in DAMAGE])
def test_damaged_descriptions(kind: str, change: Change, message: str, tmp_path: Path):
    model = with_parts(KINDS[kind])
    save(model, tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    change(payload["coda_config"]["parts"])
    torch.save(payload, tmp_path / "model.pt")
    save_pretrained(model, tmp_path / "folder")
    plain = json.loads((tmp_path / "folder" / "config.json").read_text())
    change(plain["coda"]["parts"])
    (tmp_path / "folder" / "config.json").write_text(json.dumps(plain))
    for name in ("model.pt", "folder"):
        with pytest.raises(CodaError) as caught:
            load(tmp_path / name)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    junk=st.sampled_from([None, 0, -1, 7, 10**20, "", [], {}, [None], [{"prefix": 65536}] * 3, torch.ones(2, 2)]),
    field=st.sampled_from(["prompt", "offset", "token_types", "layers", "invertible", "head"]),
)
def test_junk_in_a_file_is_found_or_harmless(kind: str, junk: Any, field: str, tmp_path: Path):
    """Nothing but the project's own errors, each one line, whatever stands in a field of the description."""
    model = with_parts(KINDS[kind])
    save(model, tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    payload["coda_config"]["parts"][field] = junk
    torch.save(payload, tmp_path / "model.pt")
    said = ""
    try:
        again = load(tmp_path / "model.pt").model
        assert tensor_digest(again.state_dict()) == tensor_digest(model.state_dict())
    except CodaError as error:
        said = str(error)
    assert "\n" not in said


def test_parts_of_no_mapping(tmp_path: Path):
    save(with_parts(KINDS["prompt"]), tmp_path / "model.pt")
    payload = torch.load(tmp_path / "model.pt", weights_only=True)
    payload["coda_config"]["parts"] = [1]
    torch.save(payload, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"parts: \[1\] is no mapping of fields"):
        load(tmp_path / "model.pt")

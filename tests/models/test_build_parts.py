"""Learned parts in their places, built of a description, and what has no place for them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from tests.conftest import example_inputs, tiny_backbone, tiny_coda
from tests.models.parts import KINDS, SERIAL, descriptions, with_parts
from torch import Tensor

from coda_models import CodaConfig, CodaModel, convert
from coda_models.build_parts import add_parts, fill_prefix, fill_prompt
from coda_models.conversion import backbone_digest
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.layers.embeddings import MaskedEmbeddings
from coda_models.learned_parts import HeadForm, InvertibleForm, LayerParts, LearnedParts


def logits(model: CodaModel) -> torch.Tensor:
    inputs = example_inputs(model, 2, 9)
    with torch.inference_mode():
        return model(input_ids=inputs["input_ids"]).logits


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_built_counts_and_is_learned(kind: str):
    """It changes answers, its tensors are in the state and in a delta, and the backbone's own digest stays."""
    parts, plain = KINDS[kind], with_parts(LearnedParts())
    model = with_parts(parts)
    assert model.coda_config.parts == parts
    added = set(model.state_dict()) - set(plain.state_dict())
    own = [name for name in added if not name.startswith("embeddings.embeddings.")]  # those were there before
    assert set(own) <= set(model.trainable_names())
    assert all(model.get_parameter(name).requires_grad for name in own)
    assert model.coda_config.backbone_sha256 == plain.coda_config.backbone_sha256 == backbone_digest(plain)
    if kind != "no token types":
        assert own or parts.head is not None
        assert logits(model).shape == (2, 3)
        assert (logits(model) - logits(plain)).abs().max() > 1e-3
    assert ("token_type_ids" in model.signature.names) == parts.token_types
    assert model.signature.max_length == plain.signature.max_length - parts.prompt - parts.offset


@pytest.mark.parametrize("kind", ["bottlenecks", "a stack in the last layer", "invertible"])
def test_what_is_not_yet_trained_computes_what_the_backbone_does(kind: str):
    parts = LearnedParts(
        layers=[LayerParts(after_attention=[SERIAL])] * 2 if kind == "bottlenecks" else (),
        invertible=KINDS[kind].invertible,
    )
    settings = {"reduction": 1, "bottleneck": 0}
    fresh = convert(tiny_backbone("bert"), CodaConfig(parts=parts, **settings)).eval()
    plain = convert(tiny_backbone("bert"), CodaConfig(**settings)).eval()
    torch.testing.assert_close(logits(fresh), logits(plain))


@settings(max_examples=25, deadline=None)
@given(descriptions)
def test_whatever_is_described_runs_or_is_refused(parts: LearnedParts):
    pooler = parts.head is not None and parts.head.pooler
    task = "sequence-classification" if pooler or parts.prompt else "token-classification"
    model = with_parts(parts, task=task)
    assert logits(model).isfinite().all() or any(one.width for one in parts.layers)
    assert model.coda_config.parts == parts


@pytest.mark.parametrize(
    ("family", "parts", "config", "error", "message"),
    [
        ("bert", {"layers": [LayerParts()]}, {}, ConfigError, "parts describe 1 layers but the model has 2"),
        ("distilbert", {"offset": 3}, {}, UnsupportedModelError, "distilbert has no place for a prefix: use a prompt"),
        ("mpnet", {"offset": 3}, {}, UnsupportedModelError, "mpnet has no place for a prefix: use a prompt or LoRA"),
        (
            "roberta-prelayernorm",
            {"layers": [LayerParts(after_attention=[SERIAL])] * 2},
            {},
            UnsupportedModelError,
            "roberta-prelayernorm has no place for bottlenecks inside of its layers",
        ),
        ("electra", {"prompt": 3}, {}, UnsupportedModelError, "this electra model has no place for a prompt among its"),
        ("electra", {"head": HeadForm(pooler=True)}, {}, UnsupportedModelError, "electra has no pooler"),
        ("distilbert", {"head": HeadForm(pooler=True)}, {}, UnsupportedModelError, "distilbert has no pooler"),
        ("bert", {"prompt": 66}, {}, UnsupportedModelError, "66 learned tokens leave no room for a text in 66 pos"),
        ("bert", {"offset": 70}, {}, UnsupportedModelError, "70 learned tokens leave no room for a text in 66 pos"),
        (
            "bert",
            {"prompt": 2},
            {"task": "token-classification"},
            UnsupportedModelError,
            "among the answers of token-classification",
        ),
        (
            "bert",
            {"prompt": 2},
            {"task": "feature-extraction"},
            UnsupportedModelError,
            "among the answers of feature-extraction",
        ),
    ],
)
def test_what_has_no_place(
    family: str, parts: dict[str, Any], config: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        with_parts(LearnedParts(**parts), family, **config)


@pytest.mark.parametrize(
    ("parts", "what"),
    [({"prompt": 2}, "a prompt"), ({"invertible": InvertibleForm(first=8, second=6)}, "an invertible adapter")],
)
def test_embeddings_that_read_the_mask_have_no_place_for_others(parts: dict[str, Any], what: str):
    model = tiny_coda("bert", CodaConfig(reduction=1))

    class Masked(MaskedEmbeddings):
        def forward(self, mask: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs["input_ids"], mask

    model.embeddings = Masked()
    with pytest.raises(UnsupportedModelError, match=f"bert( model)? has no place for {what} among its embeddings"):
        add_parts(model, LearnedParts(**parts), None)


@pytest.mark.parametrize("shape", [(3, 2, 4, 3, 8), (2, 2, 2, 3, 8), (2, 2, 4, 3, 4), (2, 2, 4, 5, 8)])
def test_a_prefix_of_another_model(shape: tuple[int, ...]):
    model = with_parts(KINDS["prefixes in front of positions"])
    with pytest.raises(UnsupportedModelError, match="does not fit a model of"):
        fill_prefix(model, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 16), (32,), (2, 32)])
def test_a_prompt_of_another_model(shape: tuple[int, ...]):
    with pytest.raises(UnsupportedModelError, match=r"does not fit a model of \(3, 32\)"):
        fill_prompt(with_parts(KINDS["prompt"]), torch.zeros(shape))


def test_parts_stay_beside_adapters_and_routers():
    parts = replace(KINDS["bottlenecks"], prompt=3)
    model = with_parts(parts, reduction=2, bottleneck=4, stand_in=4)
    assert logits(model).isfinite().all()
    assert (
        model(input_ids=example_inputs(model, 1, 9)["input_ids"], output_routing=True).routing[0].indices.shape[1] == 6
    )

"""A dense model routed: closer to it with each part, itself untouched, the same when saved and loaded."""

from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_backbone, tiny_coda
from tests.models.fitting.texts import batched, texts
from tests.models.parts import KINDS, with_parts
from torch import Tensor

from coda_models import CodaConfig, CodaModel, load, route_model, save, save_pretrained
from coda_models.checkpoint import rebuilt
from coda_models.digest import tensor_digest
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.fitting.route import fitted_routers
from coda_models.ood import FromLogits, OodDetector

BATCHES = batched(texts(48), 16)
TASKS = ("sequence-classification", "token-classification", "feature-extraction")
SMALL = {"reduction": 3, "stand_in": 8, "key_value_rank": 8}


def dense_of(family: str = "bert", task: str = TASKS[0], bottleneck: int = 4) -> CodaModel:
    return tiny_coda(family, CodaConfig(reduction=1, bottleneck=bottleneck, task=task, backbone="someone/tiny"))


@torch.no_grad()
def answers(model: CodaModel) -> Tensor:
    """[texts or valid tokens, …] over all batches."""
    given = []
    for inputs in BATCHES:
        output = model(**inputs)
        answer = output.sentence_embedding if output.logits is None else output.logits
        given.append(answer[model.mask(inputs)] if model.coda_config.task == TASKS[1] else answer)
    return torch.cat(given)


def error(model: CodaModel, wanted: Tensor) -> float:
    return float((answers(model) - wanted).square().mean())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_a_routed_model_answers_as_the_dense_one_does(family: str, task: str, attention: str):
    """Much closer than one whose routers were never fitted and that has nothing in a layer's place."""
    dense = dense_of(family, task, bottleneck=0 if attention == "k_to_k" else 4)
    state, wanted = tensor_digest(dense.state_dict()), answers(dense)
    config = dense.coda_config
    routed = route_model(dense, BATCHES, attention=attention, **SMALL)
    assert tensor_digest(dense.state_dict()) == state
    assert dense.coda_config == config
    assert dense.training == routed.training == False  # noqa: E712
    assert routed.coda_config.attention == attention
    assert routed.coda_config.key_value_rank == (8 if attention == "k_to_all" else 0)
    unfitted = dense_of(family, task, 4)
    unfitted.set_reduction(3)
    most = 1.1 if family == "modernbert" else 0.9  # gated products of random weights are far from what a thin map gives
    assert error(routed, wanted) < most * float(wanted.var(0).mean())
    assert error(routed, wanted) < error(unfitted, wanted)


def test_at_r_1_layers_are_the_dense_models(family: str):
    dense = dense_of(family)
    routed = route_model(dense, BATCHES, **SMALL)
    routed.set_reduction(1)
    with torch.no_grad():
        states = [model(**BATCHES[0], output_hidden_states=True).hidden_states[-1] for model in (routed, dense)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_only_the_named_layers_are_routed():
    routed = route_model(dense_of(), BATCHES, routed_layers=[1], **SMALL)
    first, second = routed.coda_layers()
    assert first.router is first.stand_in is first.key_value is None
    assert second.router is not None
    assert second.stand_in is not None


def test_the_same_texts_give_the_same_model():
    """Nothing is drawn: neither the seed nor what it had been counts."""
    models = []
    for seed in (0, 1):
        dense = dense_of()
        torch.manual_seed(seed)
        models.append(route_model(dense, BATCHES, **SMALL))
    assert tensor_digest(models[0].state_dict()) == tensor_digest(models[1].state_dict())


@pytest.mark.parametrize("task", TASKS)
def test_saved_and_loaded_it_computes_the_same(task: str, tmp_path: Path):
    dense = dense_of("bert", task)
    routed = route_model(dense, BATCHES, **SMALL)
    wanted = answers(routed)
    tiny_backbone("bert", task).save_pretrained(tmp_path / "backbone")
    save(routed, tmp_path / "whole.pt")
    save(routed, tmp_path / "delta.pt", delta=True)
    save_pretrained(routed, tmp_path / "folder")
    for name in ("whole.pt", "delta.pt", "folder"):
        loaded = load(tmp_path / name, backbone=tmp_path / "backbone" if name == "delta.pt" else None).model
        assert loaded.coda_config == routed.coda_config
        assert torch.equal(answers(loaded), wanted)


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "no token types"])
def test_learned_parts_stay(kind: str, attention: str):
    """A prompt's tokens are routed like others; a prefix is attended to by those that are."""
    dense = with_parts(KINDS[kind])
    wanted = answers(dense)
    routed = route_model(dense, BATCHES, attention=attention, **SMALL)
    assert routed.coda_config.parts == KINDS[kind]
    assert torch.equal(answers(rebuilt(routed)), answers(routed))
    assert error(routed, wanted) < 0.9 * float(wanted.var(0).mean())
    routed.set_reduction(1)
    with torch.no_grad():
        states = [model(**BATCHES[0], output_hidden_states=True).hidden_states[-1] for model in (routed, dense)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_answers_of_one_class_alone_are_fitted_to():
    dense = dense_of()
    with torch.no_grad():
        dense.head[-1].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))  # type: ignore[index,operator,union-attr]
    routed = route_model(dense, BATCHES, **SMALL)
    assert (answers(routed).argmax(-1) == 0).all()


def test_the_readout_may_have_more_texts():
    few = route_model(dense_of(), BATCHES[:2], **SMALL)
    more = route_model(dense_of(), BATCHES[:2], readout_batches=BATCHES, **SMALL)
    own, other = few.state_dict(), more.state_dict()
    assert {name for name in own if not torch.equal(own[name], other[name])} == {
        "head.0.dense.weight",
        "head.0.dense.bias",
    }


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_routers_that_are_given_are_taken(attention: str):
    """Fitted once, they give at any r what fitting them anew gives."""
    dense = dense_of()
    routers = fitted_routers(dense, BATCHES)
    assert dense.coda_config.stand_in == 0
    for reduction in (2, 3):
        asked = {**SMALL, "reduction": reduction, "attention": attention}
        anew, given = route_model(dense, BATCHES, **asked), route_model(dense, BATCHES, routers=routers, **asked)
        assert tensor_digest(anew.state_dict()) == tensor_digest(given.state_dict())
    other = route_model(dense, BATCHES, routers=[-one for one in routers], **asked)
    assert tensor_digest(other.state_dict()) != tensor_digest(given.state_dict())
    with pytest.raises(ConfigError, match="routers of 1 layers were given, and the model has 2"):
        route_model(dense, BATCHES, routers=routers[:1], **SMALL)


def test_progress_is_told_from_none_to_all():
    told: list[tuple[str, int, int]] = []
    route_model(dense_of(), BATCHES, progress=lambda *one: told.append(one), **SMALL)
    for what, steps in (("routers", 3), ("stand-ins", 2), ("readout", 3)):
        assert [one[1:] for one in told if one[0] == what] == [(done, steps) for done in range(steps + 1)]


def test_what_cannot_be_routed_is_said():
    dense = dense_of()
    with pytest.raises(ConfigError, match="no texts to fit on"):
        route_model(dense, [], **SMALL)
    with pytest.raises(ConfigError, match="routed_layers names layer 7"):
        route_model(dense, BATCHES, routed_layers=[7], **SMALL)
    with pytest.raises(ConfigError, match="stand-ins of rank 64 need 65 or more"):
        route_model(dense, batched(texts(3), 3))
    routed = route_model(dense, BATCHES, **SMALL)
    with pytest.raises(UnsupportedModelError, match="stand-ins already: route the dense one"):
        route_model(routed, BATCHES, **SMALL)
    dense.ood = OodDetector("msp", FromLogits("msp"), 0.5, 0.95)
    with pytest.raises(UnsupportedModelError, match="out-of-distribution detector knows its dense states"):
        route_model(dense, BATCHES, **SMALL)

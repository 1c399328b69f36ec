"""Prefixes and prompts: what they take, and what they change."""

import pytest
import torch
from tests.conftest import tiny_coda

from coda_models import CodaConfig, CodaModel
from coda_models.errors import UnsupportedModelError
from coda_models.layers.prompts import add_prefix, add_prompt

PLAIN = CodaConfig(reduction=1, bottleneck=0)


def logits(model: CodaModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("tokens", [1, 5])
def test_learned_tokens_take_room_and_change_answers(tokens: int):
    ids = torch.arange(4, 15).unsqueeze(0)
    before = tiny_coda("bert", PLAIN)
    torch.manual_seed(0)
    prefixed, prompted = tiny_coda("bert", PLAIN), tiny_coda("bert", PLAIN)
    add_prefix(prefixed, torch.randn(2, 2, 4, tokens, 8))
    add_prompt(prompted, torch.randn(tokens, 32))
    for model in (prefixed, prompted):
        assert model.signature.max_length == before.signature.max_length - tokens
        assert (logits(model, ids) - logits(before, ids)).abs().max() > 1e-3


def test_keys_that_no_query_meets_change_nothing_but_positions():
    """Values of 0 behind keys that win no attention: what is left of a prefix is where the text begins."""
    model, shifted = tiny_coda("bert", PLAIN), tiny_coda("bert", PLAIN)
    with torch.no_grad():
        for layer in model.coda_layers():
            layer.block.attention.query.bias.zero_()
            layer.block.attention.query.bias[::8] = 60.0  # every head's first number outweighs the others
    shifted.load_state_dict(model.state_dict())
    prefix = torch.zeros(2, 2, 4, 3, 8)
    prefix[:, 0, :, :, 0] = -1e4
    add_prefix(shifted, prefix)
    embedded = shifted.embeddings.embeddings
    positions = embedded.position_embeddings.weight
    with torch.no_grad():
        positions[3:] = positions[:-3].clone()
    ids = torch.arange(4, 15).unsqueeze(0)
    torch.testing.assert_close(logits(shifted, ids), logits(model, ids), atol=1e-5, rtol=0)


def test_a_prompt_of_words_is_those_words():
    """All tokens but the first are a prompt of the words' own embeddings: the same text."""
    model, prompted = tiny_coda("bert", PLAIN), tiny_coda("bert", PLAIN)
    ids = torch.arange(4, 15).unsqueeze(0)
    with torch.no_grad():
        add_prompt(prompted, prompted.embeddings.word_embeddings(ids[0, :4]))
    torch.testing.assert_close(logits(prompted, ids[:, 4:]), logits(model, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
def test_families_whose_positions_cannot_begin_elsewhere(family: str):
    with pytest.raises(UnsupportedModelError, match=f"{family} has no place for a prefix: use a prompt or LoRA"):
        add_prefix(tiny_coda(family, PLAIN), torch.zeros(2, 2, 4, 5, 8))


@pytest.mark.parametrize("shape", [(3, 2, 4, 5, 8), (2, 2, 2, 5, 8), (2, 2, 4, 5, 4)])
def test_a_prefix_of_another_model(shape: tuple[int, ...]):
    with pytest.raises(UnsupportedModelError, match="does not fit a model of"):
        add_prefix(tiny_coda("bert", PLAIN), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 16), (32,)])
def test_a_prompt_of_another_model(shape: tuple[int, ...]):
    with pytest.raises(UnsupportedModelError, match="does not fit a model of width 32"):
        add_prompt(tiny_coda("bert", PLAIN), torch.zeros(shape))


def test_learned_tokens_that_leave_no_room():
    with pytest.raises(UnsupportedModelError, match="66 learned tokens leave no room for a text in 66 positions"):
        add_prompt(tiny_coda("bert", PLAIN), torch.zeros(66, 32))


@pytest.mark.parametrize("task", ["token-classification", "feature-extraction"])
def test_prompts_are_for_whole_texts(task: str):
    with pytest.raises(UnsupportedModelError, match=f"among the answers of {task}"):
        add_prompt(tiny_coda("bert", CodaConfig(reduction=1, bottleneck=0, task=task)), torch.zeros(2, 32))

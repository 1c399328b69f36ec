"""Prefixes and prompts: what they take, and what they change."""

import pytest
import torch
from tests.conftest import tiny_coda

from coda_models import CodaConfig, CodaModel
from coda_models.build_parts import fill_prefix, fill_prompt
from coda_models.learned_parts import LayerParts, LearnedParts


def plain(parts: LearnedParts = LearnedParts()) -> CodaModel:  # noqa: B008  it is frozen
    return tiny_coda("bert", CodaConfig(reduction=1, bottleneck=0, parts=parts))


def prefixed(prefix: torch.Tensor) -> CodaModel:
    """prefix: [layers, 2, heads, tokens, head width]"""
    tokens = prefix.shape[3]
    model = plain(LearnedParts(offset=tokens, layers=[LayerParts(prefix=tokens)] * 2))
    fill_prefix(model, prefix)
    return model


def prompted(prompt: torch.Tensor) -> CodaModel:
    """prompt: [tokens, width]"""
    model = plain(LearnedParts(prompt=len(prompt)))
    fill_prompt(model, prompt)
    return model


def logits(model: CodaModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("tokens", [1, 5])
def test_learned_tokens_take_room_and_change_answers(tokens: int):
    ids = torch.arange(4, 15).unsqueeze(0)
    before = plain()
    torch.manual_seed(0)
    for model in (prefixed(torch.randn(2, 2, 4, tokens, 8)), prompted(torch.randn(tokens, 32))):
        assert model.signature.max_length == before.signature.max_length - tokens
        assert (logits(model, ids) - logits(before, ids)).abs().max() > 1e-3


def test_keys_that_no_query_meets_change_nothing_but_positions():
    """Values of 0 behind keys that win no attention: what is left of a prefix is where the text begins."""
    prefix = torch.zeros(2, 2, 4, 3, 8)
    prefix[:, 0, :, :, 0] = -1e4
    model, shifted = plain(), prefixed(prefix)
    with torch.no_grad():
        for layer in (*model.coda_layers(), *shifted.coda_layers()):
            layer.block.attention.query.bias.zero_()
            layer.block.attention.query.bias[::8] = 60.0  # every head's first number outweighs the others
    embedded = shifted.embeddings.embeddings
    positions = embedded.position_embeddings.weight
    with torch.no_grad():
        positions[3:] = positions[:-3].clone()
    ids = torch.arange(4, 15).unsqueeze(0)
    torch.testing.assert_close(logits(shifted, ids), logits(model, ids), atol=1e-5, rtol=0)


def test_a_prompt_of_words_is_those_words():
    """All tokens but the first are a prompt of the words' own embeddings: the same text."""
    model = plain()
    ids = torch.arange(4, 15).unsqueeze(0)
    words = prompted(model.embeddings.word_embeddings(ids[0, :4]))
    torch.testing.assert_close(logits(words, ids[:, 4:]), logits(model, ids), atol=1e-5, rtol=0)

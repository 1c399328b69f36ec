"""Inputs that a compiled model is verified on: random tokens in shapes that the export never saw."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coda_models.model import CodaModel
from coda_targets.bundle import Arrays


@dataclass(frozen=True)
class Inputs:
    """What a model takes.

    Attributes:
        names: of its inputs, ``attention_mask`` among them.
        vocabulary: how many token ids it knows.
        padding: the id that fills a short text.
        max_tokens: of its longest text.
        types: how many token types it knows; of one alone nothing but zeros.
    """

    names: tuple[str, ...]
    vocabulary: int
    padding: int
    max_tokens: int
    types: int = 1

    @classmethod
    def of(cls, model: CodaModel) -> "Inputs":
        """Those of a model."""
        config = model.hf_config
        return cls(
            tuple(model.input_names),
            int(config.vocab_size),
            int(config.pad_token_id or 0),
            int(model.max_tokens),
            int(getattr(config, "type_vocab_size", 1)),
        )


@dataclass(frozen=True)
class Case:
    """One input: a name for people, and arrays [batch, tokens]."""

    name: str
    inputs: Arrays


def make_case(
    inputs: Inputs, batch: int, tokens: int, *, ragged: bool, seed: int = 0, padded_left: bool = False
) -> Case:
    """Random token ids and types; ragged rows end in padding, at least one of them full length and one of a single
    token.

    Args:
        padded_left: ragged rows begin with their padding, so that the token that many models read is masked.
    """
    random = np.random.default_rng([seed, batch, tokens])
    vocabulary, padding = inputs.vocabulary, inputs.padding
    ids = random.integers(0, vocabulary, (batch, tokens))
    ids = np.where(ids == padding, (padding + 1) % vocabulary, ids)
    lengths = np.full(batch, tokens)
    if ragged:
        lengths = random.integers(1, tokens + 1, batch)
        lengths[0], lengths[-1] = tokens, 1
    mask = np.arange(tokens) < lengths[:, None]
    mask = mask[:, ::-1] if padded_left else mask
    every = {
        "input_ids": np.where(mask, ids, padding).astype(np.int64),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": np.where(mask, _types(inputs.types, batch, tokens, seed), 0).astype(np.int64),
    }
    kind = "padded on the left" if padded_left else "ragged" if ragged else "full"
    return Case(f"{batch} x {tokens} tokens, {kind}", {name: every[name] for name in inputs.names})


def _types(types: int, batch: int, tokens: int, seed: int) -> NDArray[np.int64]:
    """[batch, tokens]: every second row in two segments, as tokenizers write pairs; the others in any order."""
    random = np.random.default_rng([seed, batch, tokens, types])
    any_order = random.integers(0, types, (batch, tokens))
    begin = random.integers(0, tokens + 1, (batch, 1))  # of the second segment
    segments = np.minimum(np.arange(tokens) >= begin, types - 1)
    return np.where(np.arange(batch)[:, None] % 2, segments, any_order).astype(np.int64)


def cases(inputs: Inputs) -> list[Case]:
    """Batches 1, 3 and 8; lengths 1, 2, odd and the longest; full, ragged, and padded on the left."""
    longest = inputs.max_tokens
    odd, middle = min(37, longest), min(64, longest)
    shapes = [
        (1, 1, False),
        (1, 2, False),
        (3, 2, True),
        (3, odd, True),
        (8, min(7, longest), True),
        (8, middle, True),
        (1, longest, False),
        (3, longest, True),
    ]
    made = [make_case(inputs, batch, tokens, ragged=ragged) for batch, tokens, ragged in shapes]
    return [*made, make_case(inputs, 3, odd, ragged=True, padded_left=True)]


def kept_case(inputs: Inputs) -> Case:
    """The one that a bundle carries along, to be verified anywhere."""
    return make_case(inputs, 3, min(37, inputs.max_tokens), ragged=True, seed=1)

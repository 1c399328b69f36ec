"""Models with learned parts: one of each kind, of random weights, and descriptions drawn at random."""

from typing import Any

import torch
from hypothesis import strategies as st
from tests.conftest import tiny_coda

from coda_models import CodaConfig, CodaModel
from coda_models.learned_parts import (
    ACTIVATIONS,
    RESIDUALS,
    BottleneckForm,
    HeadForm,
    InvertibleForm,
    LayerParts,
    LearnedParts,
)

SERIAL, PARALLEL = BottleneckForm(width=4), BottleneckForm(width=8, activation="gelu_new", parallel=True)
NORMED = BottleneckForm(width=2, activation="prelu", joined=True, norm_before=True, norm_after=True)
KINDS: dict[str, LearnedParts] = {
    "bottlenecks": LearnedParts(layers=[LayerParts(after_attention=[SERIAL], after_feed_forward=[SERIAL])] * 2),
    "parallel and a prefix": LearnedParts(layers=[LayerParts(after_feed_forward=[PARALLEL], prefix=3)] * 2),
    "a stack in the last layer": LearnedParts(layers=[LayerParts(), LayerParts(after_feed_forward=[SERIAL, NORMED])]),
    "prefixes in front of positions": LearnedParts(offset=3, layers=[LayerParts(prefix=3)] * 2),
    "prompt": LearnedParts(prompt=3),
    "invertible": LearnedParts(invertible=InvertibleForm(first=8, second=6)),
    "head": LearnedParts(head=HeadForm(layers=2, bias=False, dropout=0.1)),
    "head behind the pooler": LearnedParts(head=HeadForm(pooler=True)),
    "no token types": LearnedParts(token_types=False),
}


def with_parts(parts: LearnedParts, family: str = "bert", **config: Any) -> CodaModel:
    """A tiny model with parts of random weights; dense and without adapters where nothing else is said."""
    model = tiny_coda(family, CodaConfig(**{"reduction": 1, "bottleneck": 0, "parts": parts, **config}))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if any(f".{part}" in name for part in ("after_", "prefix_", "prompt", "invertible")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _some(low: int, high: int = 9) -> st.SearchStrategy[int]:
    return st.integers(low, high)


bottlenecks = st.builds(
    BottleneckForm,
    width=_some(1),
    activation=st.sampled_from(ACTIVATIONS),
    parallel=st.booleans(),
    joined=st.booleans(),
    closes=st.booleans(),
    residual=st.sampled_from(RESIDUALS),
    residual_first=st.booleans(),
    norm_before=st.booleans(),
    norm_after=st.booleans(),
)
stacks = st.lists(bottlenecks, max_size=2)
layers = st.builds(LayerParts, after_attention=stacks, after_feed_forward=stacks, prefix=_some(0))
heads = st.builds(
    HeadForm,
    layers=_some(1, 3),
    activation=st.sampled_from(ACTIVATIONS),
    pooler=st.booleans(),
    bias=st.booleans(),
    dropout=st.floats(0, 1),
)
invertibles = st.builds(InvertibleForm, first=_some(1), second=_some(1), activation=st.sampled_from(ACTIVATIONS))
tokens = st.sampled_from([{"prompt": 0, "offset": 0}, {"prompt": 3}, {"offset": 2}])
descriptions = st.builds(
    lambda tokens, **others: LearnedParts(**tokens, **others),
    tokens=tokens,
    token_types=st.booleans(),
    layers=st.one_of(st.just([]), st.lists(layers, min_size=2, max_size=2)),
    invertible=st.none() | invertibles,
    head=st.none() | heads,
)

"""Descriptions of learned parts: they survive a round trip, and what is wrong in them is refused in one sentence."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.parts import KINDS, bottlenecks, descriptions

from coda_models import CodaConfig
from coda_models.errors import ConfigError
from coda_models.learned_parts import NO_PARTS, BottleneckForm, LayerParts, LearnedParts

BOTTLENECK = {"width": 4}
LAYER = {"after_attention": [BOTTLENECK], "prefix": 2}


@given(descriptions)
def test_a_description_survives_json(parts: LearnedParts):
    plain = json.loads(json.dumps(parts.to_dict()))
    assert LearnedParts.of(plain) == parts
    assert LearnedParts.of(plain).to_dict() == plain


@given(descriptions.filter(lambda parts: parts.head is None or not parts.head.pooler))
def test_it_is_a_part_of_the_configuration(parts: LearnedParts):
    config = CodaConfig(parts=parts)
    again = CodaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.parts == parts
    assert hash(again) == hash(config)


def test_a_model_without_parts_says_nothing_of_them():
    assert CodaConfig().parts == NO_PARTS
    assert "parts" not in CodaConfig().to_dict()
    assert CodaConfig.from_dict({**CodaConfig().to_dict(), "parts": {}}) == CodaConfig()


@given(st.lists(bottlenecks, min_size=1, max_size=3))
def test_widths_are_summed(forms: list[BottleneckForm]):
    assert LayerParts(after_attention=forms, after_feed_forward=forms[:1]).width == sum(
        one.width for one in (*forms, forms[0])
    )


def refusal(plain: Any, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        CodaConfig.from_dict({**CodaConfig(**config).to_dict(), "parts": plain})
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        (None, "parts: None is no mapping of fields"),
        ([], "parts: [] is no mapping of fields"),
        ({"surprise": 1}, "field 'surprise' of parts is unknown to this release"),
        ({3: 1}, "field '3' of parts is unknown"),
        ({"what": "parts"}, "field 'what' of parts is unknown"),
        ({"prompt": -1}, "prompt -1 of parts is not a whole number from 0 to 65536"),
        ({"prompt": 10**12}, "prompt 1000000000000 of parts is not a whole number"),
        ({"prompt": True}, "prompt True of parts is not a whole number"),
        ({"prompt": torch.ones(40, 40)}, "of parts is not a whole number"),
        ({"offset": 1.0}, "offset 1.0 of parts is not a whole number"),
        ({"offset": 2, "prompt": 2}, "leave offset 0 beside it"),
        ({"token_types": 1}, "token_types 1 of parts is neither true nor false"),
        ({"layers": "ab"}, "layers of parts is no list of 65536 at most"),
        ({"layers": [3]}, "a layer's parts: 3 is no mapping of fields"),
        ({"layers": [{"prefix": -1}]}, "prefix -1 of a layer's parts is not a whole number from 0 to 65536"),
        ({"layers": [{"after_attention": BOTTLENECK}]}, "after_attention of a layer's parts is no list of 64 at most"),
        ({"layers": [{"after_attention": [BOTTLENECK] * 65}]}, "after_attention of a layer's parts is no list of 64"),
        ({"layers": [{"after_attention": [{"width": 40000}] * 2}]}, "have width 80000 together, and 65536 is the most"),
        ({"layers": [{"after_feed_forward": [{}]}]}, "a bottleneck lacks its field 'width'"),
        ({"layers": [{"after_feed_forward": [{"width": 0}]}]}, "width 0 of a bottleneck is not a whole number from 1"),
        ({"layers": [{"after_feed_forward": [{**BOTTLENECK, "activation": "gemu"}]}]}, "activation 'gemu' of a bottle"),
        ({"layers": [{"after_feed_forward": [{**BOTTLENECK, "activation": ["relu"]}]}]}, "activation ['relu'] of a b"),
        (
            {"layers": [{"after_feed_forward": [{**BOTTLENECK, "residual": "nowhere"}]}]},
            "residual 'nowhere' of a bottleneck is unknown: use one of before, added, normed",
        ),
        (
            {"layers": [{"after_feed_forward": [{**BOTTLENECK, "parallel": "no"}]}]},
            "parallel 'no' of a bottleneck is neither true nor false",
        ),
        ({"invertible": {"first": 4}}, "an invertible adapter lacks its field 'second'"),
        ({"invertible": {"first": 4, "second": 1 << 20}}, "second 1048576 of an invertible adapter is not a whole"),
        ({"invertible": 3}, "an invertible adapter: 3 is no mapping of fields"),
        ({"head": {"layers": 65}}, "layers 65 of a head is not a whole number from 1 to 64"),
        ({"head": {"dropout": math.nan}}, "dropout nan of a head is no number from 0 to 1"),
        ({"head": {"dropout": "0"}}, "dropout '0' of a head is no number from 0 to 1"),
        ({"head": {"bias": None}}, "bias None of a head is neither true nor false"),
    ],
)
def test_a_bad_value_is_named(plain: Any, part: str):
    assert part in refusal(plain)


def test_heads_are_for_classification():
    assert "feature-extraction has no place for a head" in refusal({"head": {}}, task="feature-extraction")
    pooled = {"head": {"pooler": True}}
    assert "is for sequence-classification" in refusal(pooled, task="token-classification")
    assert "is for sequence-classification" in refusal(pooled, pooling="mean")


def places(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in plain data."""
    yield path
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        yield from places(value, (*path, key))


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damage_is_refused_in_one_sentence_or_means_something(kind: str, data: st.DataObject):
    """Whatever stands wherever: never another exception."""
    plain = {"parts": json.loads(json.dumps(KINDS[kind].to_dict()))}
    path = data.draw(st.sampled_from([place for place in places(plain) if place]))
    junk = st.sampled_from([None, True, -1, 0, 1e300, 10**30, "", "relu", "\n", [], [[]], {}, {"width": 1}, b"x"])
    holder = plain
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(junk)
    said = ""
    try:
        parts = LearnedParts.of(plain["parts"])
        assert LearnedParts.of(parts.to_dict()) == parts
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said

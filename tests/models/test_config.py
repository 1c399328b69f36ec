"""CodaConfig: what it refuses, each in one sentence, and that it survives a round trip."""

import dataclasses
import json
import math
from fractions import Fraction

import pytest

from coda_models.config import CodaConfig, parse_reduction
from coda_models.errors import ConfigError
from coda_models.learned_parts import LearnedParts


def refusal(**fields):
    with pytest.raises(ConfigError) as caught:
        CodaConfig(**fields)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(4, 4), ("4", 4), ("7/2", Fraction(7, 2)), ("2.5", Fraction(5, 2)), (Fraction(9, 3), 3), (" 3 ", 3), (1, 1)],
)
def test_a_reduction_is_an_exact_ratio(value, wanted):
    assert parse_reduction(value) == wanted
    assert CodaConfig(reduction=value).reduction == Fraction(wanted)


@pytest.mark.parametrize("value", [0, -1, "1/2", "0.99", Fraction(999, 1000), "-4"])
def test_a_reduction_below_one_is_refused(value):
    assert "below 1" in refusal(reduction=value)


@pytest.mark.parametrize("value", ["4/0", "0/0", "four", "", "nan", "inf", "4/2/1", True, False, None, 2.5, 4.0, b"4"])
def test_what_is_no_ratio_is_refused(value):
    assert "no ratio" in refusal(reduction=value)


@pytest.mark.parametrize("value", ["1e1000000000", "4e0", "1E-1000000000"])
def test_an_exponent_is_refused_before_its_digits_are_written_out(value):
    assert "has an exponent" in refusal(reduction=value)


@pytest.mark.parametrize("field", ["bottleneck", "reduction", "epsilon_start"])
def test_a_number_of_more_digits_than_python_writes(field):
    with pytest.raises(ConfigError, match=r"^[^\n]{1,200}$"):
        CodaConfig.from_dict({field: -(10**5000)})


@pytest.mark.parametrize("value", [[4, True], [4, 2.5], [None], ["x", 4]])
def test_what_is_no_ratio_is_refused_in_a_list_too(value):
    assert "no ratio" in refusal(reduction=value)


@pytest.mark.parametrize("value", ["1000001", "1000001/1000000", Fraction(10**7, 3)])
def test_integers_beyond_a_million_are_refused(value):
    assert "above a million" in refusal(reduction=value)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("attention", "all_to_all", "attention 'all_to_all' is unknown: use one of k_to_k, k_to_all"),
        ("attention", None, "attention None is unknown"),
        ("task", "translation", "task 'translation' is unknown: use one of sequence-classification"),
        ("pooling", "median", "pooling 'median' is unknown: use one of mean, first"),
        ("pooling", ["mean", "cls"], "pooling 'cls' is unknown"),
        ("bottleneck", -1, "bottleneck -1 is not a whole number"),
        ("bottleneck", 64.0, "bottleneck 64.0 is not a whole number"),
        ("bottleneck", True, "bottleneck True is not a whole number"),
        ("bottleneck", 10**12, "bottleneck 1000000000000 is not a whole number from 0 to 65536"),
        ("iterations", 0, "iterations 0 is not a whole number"),
        ("iterations", "20", "iterations '20' is not a whole number"),
        ("iterations", 10**9, "iterations 1000000000 is not a whole number from 1 to 1000"),
        ("epsilon_start", 0, "epsilon_start 0 is outside"),
        ("epsilon_start", True, "epsilon_start True is outside"),
        ("epsilon_start", math.inf, "epsilon_start inf is outside"),
        ("epsilon_decay", 1.5, "epsilon_decay 1.5 is outside"),
        ("epsilon_decay", "0.7", "epsilon_decay '0.7' is outside"),
        ("epsilon_final", math.nan, "epsilon_final nan is outside"),
        ("epsilon_final", -0.03, "epsilon_final -0.03 is outside"),
        ("backbone", 7, "backbone 7 is not text"),
        ("backbone_sha256", None, "backbone_sha256 None is not text"),
        ("routed_layers", [0, -1], "layer indices from 0 on"),
        ("routed_layers", [0.0], "layer indices from 0 on"),
        ("routed_layers", [True], "layer indices from 0 on"),
        ("routed_layers", 1, "no list of layer indices"),
        ("routed_layers", "01", "layer indices from 0 on"),
        ("version", 2, "configuration version 2 is not 1"),
        ("version", "1", "configuration version '1' is not 1"),
    ],
)
def test_a_bad_field_is_named(field, value, part):
    assert part in refusal(**{field: value})


@pytest.mark.parametrize("plain", [None, [], "config", 3])
def test_what_is_no_mapping_is_refused(plain):
    with pytest.raises(ConfigError, match=r"a mapping of fields"):
        CodaConfig.from_dict(plain)


@pytest.mark.parametrize("field", ["routing", "Reduction", "", 3])
def test_an_unknown_field_is_refused(field):
    with pytest.raises(ConfigError, match=r"is unknown to this release"):
        CodaConfig.from_dict({**CodaConfig().to_dict(), field: 1})


def test_another_version_is_refused_before_its_fields_are_read():
    with pytest.raises(ConfigError, match=r"configuration version 99"):
        CodaConfig.from_dict({**CodaConfig().to_dict(), "version": 99, "attention": "whatever version 99 has"})


@pytest.mark.parametrize(
    "config",
    [
        CodaConfig(),
        CodaConfig(reduction="7/2", attention="k_to_all", bottleneck=0, pooling="first", task="feature-extraction"),
        CodaConfig(reduction=[1, "5/2", 8], routed_layers=[2, 0, 2], epsilon_final=1.0, backbone="a/b"),
        CodaConfig(routed_layers=[], iterations=3, task="token-classification", backbone_sha256="0" * 64),
    ],
)
def test_round_trip_through_json(config):
    again = CodaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert all(isinstance(r, Fraction) for r in again.layer_reductions(3))


def test_every_field_is_saved():
    assert set(CodaConfig(parts=LearnedParts(prompt=1)).to_dict()) == {
        field.name for field in dataclasses.fields(CodaConfig)
    }


def test_layer_reductions():
    assert CodaConfig(reduction=4).layer_reductions(3) == [4, 4, 4]
    assert CodaConfig(reduction=[1, 2, "7/2"]).layer_reductions(3) == [1, 2, Fraction(7, 2)]
    assert CodaConfig(reduction=4, routed_layers=[2]).layer_reductions(3) == [1, 1, 4]
    assert CodaConfig(reduction=4, routed_layers=[]).layer_reductions(3) == [1, 1, 1]


@pytest.mark.parametrize("listed", [[], [4], [4, 4, 4]])
def test_a_list_of_the_wrong_length_is_refused(listed):
    with pytest.raises(ConfigError, match=rf"reduction lists {len(listed)} layers but the model has 2"):
        CodaConfig(reduction=listed).layer_reductions(2)


def test_routed_layers_beyond_the_model_are_refused():
    with pytest.raises(ConfigError, match=r"routed_layers names layer 2 but the model's last layer is 1"):
        CodaConfig(routed_layers=[0, 2]).layer_reductions(2)


def test_with_reduction_keeps_the_rest():
    config = CodaConfig(reduction=4, attention="k_to_all", backbone="x")
    assert config.with_reduction("7/2") == dataclasses.replace(config, reduction=Fraction(7, 2))
    with pytest.raises(ConfigError, match=r"below 1"):
        config.with_reduction("1/2")


@pytest.mark.parametrize(("task", "pooling"), [("feature-extraction", "mean"), ("sequence-classification", "first")])
def test_pooling_is_by_default_what_the_task_takes(task, pooling):
    assert CodaConfig(task=task).pooling == pooling


def test_a_mean_of_tokens_cannot_be_classified_by_token():
    with pytest.raises(ConfigError, match="pooling 'mean' leaves no tokens to classify"):
        CodaConfig(task="token-classification", pooling="mean")

"""The inputs of verification reach every edge and are the same each time."""

import dataclasses

import numpy as np
import pytest
from tests.conftest import tiny_coda

from coda_compile.verify.cases import Inputs, cases, kept_case, make_case


@pytest.fixture
def inputs() -> Inputs:
    return Inputs.of(tiny_coda())


def test_cases_reach_the_edges(inputs: Inputs):
    shapes = [case.inputs["input_ids"].shape for case in cases(inputs)]
    assert {batch for batch, _ in shapes} == {1, 3, 8}
    assert {tokens for _, tokens in shapes} >= {1, 2, inputs.max_tokens}
    ragged = [case.inputs["attention_mask"].sum(1) for case in cases(inputs) if "ragged" in case.name]
    assert all((lengths.max(), lengths.min()) == (lengths[0], 1) for lengths in ragged)


def test_cases_are_the_same_every_time(inputs: Inputs):
    for one, two in zip(cases(inputs), cases(inputs), strict=True):
        assert one.name == two.name
        for name, array in one.inputs.items():
            np.testing.assert_array_equal(array, two.inputs[name])


def test_padding_id_stands_for_padding_alone(inputs: Inputs):
    case = make_case(inputs, 4, 20, ragged=True, seed=3)
    np.testing.assert_array_equal(case.inputs["input_ids"] == 0, case.inputs["attention_mask"] == 0)


def test_the_kept_case_is_none_of_those_that_were_verified(inputs: Inputs):
    kept = kept_case(inputs).inputs["input_ids"]
    assert kept.shape == (3, 37)
    assert all(
        kept.shape != c.inputs["input_ids"].shape or (kept != c.inputs["input_ids"]).any() for c in cases(inputs)
    )


def test_token_types_are_those_that_the_model_has(inputs: Inputs):
    given = [case.inputs for case in cases(inputs)]
    assert {int(types) for case in given for types in np.unique(case["token_type_ids"])} == {0, 1}
    assert all((case["token_type_ids"][case["attention_mask"] == 0] == 0).all() for case in given)
    assert kept_case(inputs).inputs["token_type_ids"].any()
    pairs = next(case for case in given if case["input_ids"].shape[0] == 8)["token_type_ids"][1::2]
    mask = next(case for case in given if case["input_ids"].shape[0] == 8)["attention_mask"][1::2]
    assert all((np.diff(row[: n.sum()]) >= 0).all() for row, n in zip(pairs, mask, strict=True))
    alone = dataclasses.replace(inputs, types=1)
    assert not any(case.inputs["token_type_ids"].any() for case in cases(alone))


def test_the_first_token_may_be_padding(inputs: Inputs):
    masks = [case.inputs["attention_mask"] for case in cases(inputs) if "left" in case.name]
    assert any((mask[:, 0] == 0).any() for mask in masks)
    assert all((mask[:, -1] == 1).all() for mask in masks)

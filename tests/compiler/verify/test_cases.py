"""The inputs of verification reach every edge and are the same each time."""

import numpy as np
import pytest
from tests.conftest import tiny_coda

from coda_compile.verify.cases import cases, kept_case, make_case
from coda_targets.modalities.text import text_signature
from coda_targets.signature import Signature

# Bundles carry such arrays as test data; the seed says which.
SEEDED = [
    [[80, 21, 96, 38], [72, 22, 0, 0], [12, 0, 0, 0]],
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]],
    [[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]],
]


@pytest.fixture
def signature() -> Signature:
    return tiny_coda().signature


def test_cases_reach_the_edges(signature: Signature):
    shapes = [signature.shape(case.inputs) for case in cases(signature)]
    assert {batch for batch, _ in shapes} == {1, 3, 8}
    assert {length for _, length in shapes} >= {1, 2, signature.max_length}
    ragged = [signature.mask(case.inputs).sum(1) for case in cases(signature) if "ragged" in case.name]
    assert all((lengths.max(), lengths.min()) == (lengths[0], 1) for lengths in ragged)


def test_no_case_is_longer_than_the_longest():
    shortest = text_signature(100, 1)
    assert all(shortest.shape(case.inputs)[1] == 1 for case in [*cases(shortest), kept_case(shortest)])


def test_a_batch_of_long_sequences_fits_into_memory():
    long = text_signature(100, 8192)
    shapes = [long.shape(case.inputs) for case in cases(long)]
    assert (1, 8192) in shapes
    assert max(batch * length**2 for batch, length in shapes) == 8192**2


def test_cases_are_the_same_every_time(signature: Signature):
    for one, two in zip(cases(signature), cases(signature), strict=True):
        assert one.name == two.name
        for name, array in one.inputs.items():
            np.testing.assert_array_equal(array, two.inputs[name])


def test_cases_are_those_of_bundles_that_were_compiled_before(signature: Signature):
    arrays = list(make_case(signature, 3, 4, ragged=True, seed=1).inputs.values())
    assert [array.tolist() for array in arrays] == SEEDED


def test_padding_id_stands_for_padding_alone(signature: Signature):
    case = make_case(signature, 4, 20, ragged=True, seed=3)
    np.testing.assert_array_equal(case.inputs[signature.lead.name] != 0, signature.mask(case.inputs))


def test_the_kept_case_is_none_of_those_that_were_verified(signature: Signature):
    name = signature.lead.name
    kept = kept_case(signature).inputs[name]
    assert kept.shape == (3, 37)
    assert all(kept.shape != case.inputs[name].shape or (kept != case.inputs[name]).any() for case in cases(signature))


def test_token_types_are_those_that_the_model_has(signature: Signature):
    given = [case.inputs for case in cases(signature)]
    types = signature.inputs[2].name
    assert {int(value) for case in given for value in np.unique(case[types])} == {0, 1}
    assert all((case[types][~signature.mask(case)] == 0).all() for case in given)
    assert kept_case(signature).inputs[types].any()
    of_eight = next(case for case in given if len(case[types]) == 8)
    pairs, mask = of_eight[types][1::2], signature.mask(of_eight)[1::2]
    assert all((np.diff(row[: n.sum()]) >= 0).all() for row, n in zip(pairs, mask, strict=True))
    alone = text_signature(100, 66, types=1)
    assert not any(case.inputs[types].any() for case in cases(alone))


def test_the_first_token_may_be_padding(signature: Signature):
    masks = [signature.mask(case.inputs) for case in cases(signature) if "left" in case.name]
    assert any((~mask[:, 0]).any() for mask in masks)
    assert all(mask[:, -1].all() for mask in masks)


def test_without_a_mask_every_case_is_full(signature: Signature):
    whole = signature.without("mask")
    assert all("full" in case.name for case in cases(whole))

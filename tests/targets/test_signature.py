"""Signatures: whatever they make they take, and what does not fit them is refused in one sentence."""

import json
from dataclasses import asdict, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coda_targets.errors import InputError
from coda_targets.modalities.text import IDS, MASK, TYPES, text_signature
from coda_targets.signature import Input, Signature

TEXT = text_signature(100, 66, padding=1, types=2)
FRAMES = Signature(
    "frames",
    (
        Input("features", "float32", ("batch", "frames", 8), "values", padding=-1.5),
        Input("valid", "int64", ("batch", "frames"), "mask"),
    ),
    40,
)
CHANNELS_FIRST = Signature("audio", (Input("mel", "float32", ("batch", 8, "frames"), "values"),), 30)

texts = st.builds(
    text_signature,
    st.integers(2, 500),
    st.integers(1, 64),
    padding=st.integers(0, 1),
    types=st.one_of(st.none(), st.integers(1, 4)),
)
signatures = st.one_of(texts, st.just(TEXT), st.just(FRAMES), st.just(CHANNELS_FIRST))


@st.composite
def made(draw: st.DrawFn) -> tuple[Signature, dict[str, Any], dict[str, Any]]:
    """A signature, how arrays are made of it, and the arrays."""
    signature = draw(signatures)
    how = {
        "batch": draw(st.integers(1, 6)),
        "length": draw(st.integers(1, signature.max_length)),
        "ragged": draw(st.booleans()),
        "padded_left": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }
    return signature, how, signature.random(**how)


@given(made())
def test_what_it_makes_it_takes_as_it_is(one: tuple[Signature, dict[str, Any], dict[str, Any]]):
    signature, how, arrays = one
    assert tuple(arrays) == signature.names
    prepared = signature.prepare(arrays)
    assert tuple(prepared) == signature.names
    for name, array in arrays.items():
        assert prepared[name].dtype == array.dtype
        np.testing.assert_array_equal(prepared[name], array)
    assert signature.shape(arrays) == (how["batch"], how["length"])


@given(made())
def test_it_makes_the_same_every_time(one: tuple[Signature, dict[str, Any], dict[str, Any]]):
    signature, how, arrays = one
    again = signature.random(**how)
    assert all(np.array_equal(arrays[name], again[name]) for name in signature.names)


@given(made())
def test_masks_of_ragged_rows(one: tuple[Signature, dict[str, Any], dict[str, Any]]):
    signature, how, arrays = one
    mask = signature.mask(arrays)
    assert (mask.dtype, mask.shape) == (np.bool_, (how["batch"], how["length"]))
    if not how["ragged"] or signature.role("mask") is None:
        assert mask.all()
        return
    lengths = mask.sum(1)
    assert lengths[-1] == 1
    assert lengths[0] == how["length"] or how["batch"] == 1
    ordered = mask[:, ::-1] if how["padded_left"] else mask
    assert (ordered == (np.arange(how["length"]) < lengths[:, None])).all()


@given(made())
def test_padding_stands_where_nothing_is_valid(one: tuple[Signature, dict[str, Any], dict[str, Any]]):
    signature, _, arrays = one
    mask = signature.mask(arrays)
    for each in signature.inputs:
        if each.role != "mask" and each.axes[1] == signature.length_axis:
            assert (arrays[each.name][~mask] == each.padding).all()
        if each.role == "ids" and each.size > 1:
            assert (arrays[each.name][mask] != each.padding).all()


@given(signatures)
def test_json_round_trip(signature: Signature):
    text = json.dumps(asdict(signature))
    again = msgspec.json.decode(text, type=Signature)
    assert again == signature
    assert json.dumps(asdict(again)) == text


@given(made())
def test_what_may_be_left_out_is_filled_in(one: tuple[Signature, dict[str, Any], dict[str, Any]]):
    signature, _, arrays = one
    required = {each.name: arrays[each.name] for each in signature.inputs if each.required}
    filled = signature.prepare(required)
    for each in signature.inputs:
        expected = {"mask": 1, "types": 0}.get(each.role, filled[each.name])
        assert (filled[each.name] == expected).all()
        assert filled[each.name].dtype == each.dtype
    assert signature.mask(required).all()


FEATURES = np.zeros((2, 5, 8), np.float32)
IDENTIFIERS = np.full((2, 5), 7)


@pytest.mark.parametrize(
    ("signature", "arrays", "message"),
    [
        (
            FRAMES,
            {"features": FEATURES, "speed": FEATURES},
            "input 'speed' is unknown: this model takes features, valid",
        ),
        (FRAMES, {"valid": np.ones((2, 5))}, "input 'features' is missing: this model takes features, valid"),
        (
            FRAMES,
            {"features": FEATURES[..., :7]},
            r"features must be floating-point numbers of shape \[batch, frames, 8\], not float32 \[2, 5, 7\]",
        ),
        (
            FRAMES,
            {"features": FEATURES.astype(int)},
            r"floating-point numbers of shape \[batch, frames, 8\], not int64",
        ),
        (FRAMES, {"features": FEATURES[:, :0]}, r"not float32 \[2, 0, 8\]"),
        (
            FRAMES,
            {"features": np.zeros((1, 41, 8))},
            "features has 41 frames but this model takes at most 40: truncate",
        ),
        (FRAMES, {"features": FEATURES, "valid": np.ones((2, 5))}, "valid must hold integers, not float64"),
        (
            FRAMES,
            {"features": FEATURES, "valid": np.ones((2, 4), int)},
            r"valid has shape \[2, 4\] but features has \[2, 5, 8\]",
        ),
        (TEXT, {IDS: IDENTIFIERS, TYPES: np.full((2, 5), 2)}, "holds ids that this model does not know: it has 2"),
        (TEXT, {IDS: IDENTIFIERS * 100}, "holds ids that this model does not know: it has 100 of them, from 0 on"),
        (TEXT, {IDS: IDENTIFIERS - 8}, "input_ids holds ids that this model does not know"),
        (TEXT, {IDS: IDENTIFIERS, TYPES: IDENTIFIERS - 8}, "token_type_ids holds ids that this model does not know"),
        (TEXT, {IDS: np.full((1, 2), 2**64 - 1, np.uint64)}, "input_ids holds ids that this model does not know"),
        (TEXT, {IDS: [[1, 2], [3]]}, "has rows of different lengths: pad them and mask the padding"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(signature: Signature, arrays: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        signature.prepare(arrays)


def test_values_of_any_width_are_taken():
    for dtype in (np.float16, np.float64):
        assert FRAMES.prepare({"features": FEATURES.astype(dtype)})["features"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": TEXT.inputs[1:]}, "there is nothing to read"),
        ({"inputs": (TEXT.inputs[0], TEXT.inputs[0])}, "two inputs have one name"),
        ({"inputs": (*TEXT.inputs[:1], FRAMES.inputs[1])}, "dynamic axes batch, frames, sequence"),
        ({"max_length": 0}, "longest input is 0"),
    ],
)
def test_signatures_that_say_nothing_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(TEXT, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "words"}, "role 'words' is unknown: use one of ids, values, mask, types"),
        ({"dtype": "float32"}, f"{IDS} holds ids, which float32 cannot"),
        ({"axes": ("sequence", "batch")}, "of which the first has to be 'batch'"),
        ({"axes": ("batch", "sequence", -1)}, "of which a fixed one has no possible size"),
        ({"axes": ("batch", 1 << 70)}, "of which a fixed one has no possible size"),
        ({"size": 0}, "looked up in a table of 0 rows"),
    ],
)
def test_inputs_that_say_nothing_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(TEXT.inputs[0], **change)


def test_what_two_models_both_run():
    other = text_signature(60, 99, types=4)
    common = TEXT.common(other)
    assert [one.size for one in common.inputs] == [60, 0, 2]
    assert common.max_length == 66
    assert common.names == TEXT.names


def test_changed_copies():
    assert TEXT.without("types").names == (IDS, MASK)
    assert TEXT.select((MASK, IDS)).names == (MASK, IDS)
    assert TEXT.select((MASK, IDS)).lead.name == IDS
    assert (TEXT.shortened(9).max_length, TEXT.shortened(999).max_length) == (9, 66)
    assert (TEXT.unit, FRAMES.unit) == ("tokens", "frames")

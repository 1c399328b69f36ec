"""Profiles: read, proposed, spelt for providers, and held against inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coda_targets.errors import InputError, TargetError
from coda_targets.modalities.text import text_signature
from coda_targets.profile import Profile
from coda_targets.signature import Input, Signature

TEXT = text_signature(100, 512, types=2)
FRAMES = Signature("frames", (Input("frames", "float32", ("batch", "frames", 80), "values"),), 3000)
sizes = st.tuples(st.integers(1, 64), st.integers(1, 512))


@given(sizes, sizes, sizes)
def test_what_is_written_is_read(one: tuple[int, int], two: tuple[int, int], three: tuple[int, int]):
    batches, lengths = (sorted(each) for each in zip(one, two, three, strict=True))
    profile = Profile(*zip(batches, lengths, strict=True))
    assert profile.rises
    assert Profile.parse(str(profile)) == profile


@pytest.mark.parametrize(
    "text", ["", "1x64", "1x64,8x256", "1x1,2x2,3x3,4x4", "a,b,c", "1x1,2x2,-3x3", "1x1,2x2,3x", "1.5x1,2x2,3x3"]
)
def test_what_is_no_profile_is_refused(text: str):
    with pytest.raises(TargetError, match=r"cannot be read: give the least, the usual and the largest input as BATCH"):
        Profile.parse(text)


@pytest.mark.parametrize("text", ["0x1,2x2,3x3", "1x0,2x2,3x3", "2x2,1x3,4x4", "1x1,4x4,4x3"])
def test_sizes_that_do_not_rise_are_refused(text: str):
    with pytest.raises(TargetError, match=rf"profile '{text}' does not rise from 1x1 or more"):
        Profile.parse(text)


@given(st.integers(1, 4096))
def test_what_is_proposed_is_all_that_a_model_takes(longest: int):
    profile = Profile.of(text_signature(100, longest))
    assert profile.rises
    assert profile.most == (32, longest)
    profile.check(1, 1, "tokens")


def test_shapes_as_providers_read_them():
    profile = Profile.parse("1x64,8x256,32x512")
    assert profile.shapes(profile.best, TEXT) == "input_ids:8x256,attention_mask:8x256,token_type_ids:8x256"
    assert profile.shapes(profile.most, FRAMES) == "frames:32x512x80"


@given(sizes)
def test_an_input_outside_is_refused_and_no_other(size: tuple[int, int]):
    profile = Profile((2, 16), (4, 64), (32, 256))
    batch, length = size
    if 2 <= batch <= 32 and 16 <= length <= 256:
        profile.check(batch, length, "tokens")
        return
    with pytest.raises(InputError, match=rf"^{batch} x {length} tokens are outside of the profile 2x16,4x64,32x256"):
        profile.check(batch, length, "tokens")

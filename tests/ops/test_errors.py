"""Sentences that name options."""

from coda_ops.errors import CodaError, OptionError


def test_options_are_named_by_their_fields_and_spelt_by_who_shows_them():
    error = OptionError("{first} and {second} go together in {path!r}: {count:g} of them", path="a{b}", count=2.0)
    assert isinstance(error, CodaError)
    assert str(error) == "first and second go together in 'a{b}': 2 of them"
    assert error.spelt(lambda name: f"--{name}") == "--first and --second go together in 'a{b}': 2 of them"

"""Sentences that name options."""

import pytest

from coda_ops.errors import CodaError, OptionError, first_line


def test_options_are_named_by_their_fields_and_spelt_by_who_shows_them():
    error = OptionError("{first} and {second} go together in {path!r}: {count:g} of them", path="a{b}", count=2.0)
    assert isinstance(error, CodaError)
    assert str(error) == "first and second go together in 'a{b}': 2 of them"
    assert error.spelt(lambda name: f"--{name}") == "--first and --second go together in 'a{b}': 2 of them"


@pytest.mark.parametrize(
    ("said", "cut"),
    [
        ("the reason\nand more", "the reason"),
        (
            "Error(s) in loading:\n\tsize mismatch for a\n\tsize mismatch for b",
            "Error(s) in loading: size mismatch for a",
        ),
        ("nothing follows:", "nothing follows:"),
        ("  \n", "ValueError"),
        ("one of " + "a, " * 200, "one of " + "a, " * 97 + "…"),
        ("x" * 301, "x" * 300 + " …"),
    ],
)
def test_another_library_s_reason_in_one_line(said: str, cut: str):
    assert first_line(ValueError(said)) == cut

"""Texts, pairs and labels of files: one rule a file, and nothing dropped in silence."""

from pathlib import Path

import pytest

from coda_compile.errors import CodaError
from coda_compile.texts import columns, read_rows, read_texts

NAMES, STARS = ("neg", "neutral", "pos"), ("1", "2", "3", "4", "5")


def csv(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    ("labels", "cells", "read"),
    [
        (NAMES, ["pos", "neg"], ["pos", "neg"]),
        (NAMES, ["2", "0"], ["pos", "neg"]),
        (STARS, ["1", "5", "3"], ["1", "5", "3"]),
        (("0", "1"), ["1", "0"], ["1", "0"]),
        (("1", "0"), ["1", "0"], ["1", "0"]),
    ],
)
def test_a_file_holds_names_or_numbers(labels: tuple[str, ...], cells: list[str], read: list[str], tmp_path: Path):
    path = csv(tmp_path, "text,label", *(f"good,{cell}" for cell in cells))
    assert [label for _, label in read_rows(path, labels)] == read


@pytest.mark.parametrize(
    ("labels", "cells", "message"),
    [
        (
            NAMES,
            ["pos", "1"],
            "line 3 of .* has the label '1': the first one is 'pos', and a file holds names of labels",
        ),
        (
            NAMES,
            ["1", "pos"],
            "line 3 of .* has the label 'pos': the first one is '1', and a file holds names of labels",
        ),
        (NAMES, ["1", "3"], "line 3 of .* has the label '3': this model knows neg, neutral, pos"),
        (NAMES, ["1", "-1"], "has the label '-1'"),
        (
            STARS,
            ["0", "1", "2"],
            "line 2 of .* has the label '0': this model knows 1, 2, 3, 4, 5, and takes no numbers",
        ),
        (
            STARS,
            ["2", "1", "0"],
            "line 4 of .* has the label '0': this model knows 1, 2, 3, 4, 5, and takes no numbers",
        ),
        (("0", "other"), ["0", "1"], "line 3 of .* has the label '1': this model knows 0, other, and takes no numbers"),
    ],
)
def test_what_could_mean_two_labels_is_refused(labels: tuple[str, ...], cells: list[str], message: str, tmp_path: Path):
    path = csv(tmp_path, "text,label", *(f"good,{cell}" for cell in cells))
    with pytest.raises(CodaError, match=message):
        read_rows(path, labels)


def test_pairs_are_read_where_their_column_is(tmp_path: Path):
    path = csv(tmp_path, "text_pair,label,text", "second,pos,first", ",neg,first")
    assert read_rows(path, NAMES) == [(("first", "second"), "pos"), (("first", ""), "neg")]
    assert read_texts(path) == [("first", "second"), ("first", "")]
    assert columns(read_texts(path)) == {"text": ["first", "first"], "text_pair": ["second", ""]}
    assert columns(["a", "b"]) == {"text": ["a", "b"]}


@pytest.mark.parametrize("header", ["text", "text,label"])
def test_a_text_is_not_cut_at_its_comma(header: str, tmp_path: Path):
    path = csv(tmp_path, header, "good, though long" + ",pos" * header.count(","))
    with pytest.raises(CodaError, match=r"line 2 of .*data\.csv has more cells than the header: quote texts that hold"):
        read_texts(path)

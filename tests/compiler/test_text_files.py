"""Texts, pairs and labels of files: one rule a file, and nothing dropped in silence."""

from io import StringIO
from pathlib import Path

import pytest

from coda_compile.errors import CodaError
from coda_compile.text_files import (
    columns,
    label_numbers,
    label_sets,
    lines,
    read_rows,
    read_table,
    read_texts,
    stream_texts,
)

NAMES, STARS = ("neg", "neutral", "pos"), ("1", "2", "3", "4", "5")
MANY, UNNAMED = (tuple(f"{name}{i}" for i in range(150)) for name in ("c", "LABEL_"))


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
        (MANY, ["c3", "d"], "line 3 of .* has the label 'd': this model knows c0, c1, .*, c7 and 142 more$"),
        (UNNAMED, ["good", "bad"], "knows LABEL_0, .* and 142 more, which nobody named: write numbers from 0 on, or"),
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
        (
            ("-1", "+0", "+1"),
            ["1", "0"],
            "line 2 of .* has the label '1': this model knows -1, .*, and takes no numbers",
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text, text_pair\na,b\n", "has ' text_pair', which is not read: write 'text_pair'"),
        ("a.csv", "text,text_pairs\na,b\n", "has 'text_pairs', which is not read"),
        ("a.csv", "text,text,text_pair\na,b,c\n", "has two columns 'text'"),
        ("a.csv", "text,text_pair\na\n", "line 2 of .* has fewer cells than the header"),
        ("a.csv", 'text,text_pair\n"a,b\nc,d\n', "cannot be read as CSV: unexpected end of data"),
        ("a.jsonl", '{"text": "a", "textpair": "b"}\n', "text 1 of .* has 'textpair', which is not read"),
        ("a.jsonl", '{"text": "a", "text_pair": "b"}\n{"text": "c"}\n', "text 2 of .* is single and those before"),
        ("a.jsonl", '{"text": "a"}\n{"text": "c", "text_pair": "b"}\n', "text 2 of .* is a pair and those before"),
        ("a.json", '["a"]\n', r"is a \.json file: give \.csv, \.jsonl"),
        ("a.tsv", "text\ttext_pair\na\tb\n", r"is a \.tsv file"),
    ],
)
def test_no_pair_is_read_as_something_else(name: str, content: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CodaError, match=message):
        list(stream_texts(tmp_path / name))


def test_other_columns_are_nobodys_business(tmp_path: Path):
    """Files of data sets have more of them."""
    (tmp_path / "a.csv").write_text("id,text,labels,label,source\n1,a,x,b,c\n")
    assert list(stream_texts(tmp_path / "a.csv")) == ["a"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,Labels\na,1\nb,no\n"),
        ("a.jsonl", '{"text": "a", "Labels": 1}\n{"text": "b", "Labels": "no"}\n'),
    ],
)
def test_labels_stand_in_the_column_that_is_named(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    assert [(row.text, row.label) for row in read_table(tmp_path / name, "Labels")] == [("a", "1"), ("b", "no")]


def test_a_table_without_labels(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a\n\nb, c\n")
    (tmp_path / "a.csv").write_text("text,text_pair\na,b\n")
    assert [(row.text, row.label) for row in read_table(tmp_path / "a.txt")] == [("a", ""), ("b, c", "")]
    assert [row.text for row in read_table(tmp_path / "a.csv")] == [("a", "b")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\n", "a.csv has no column 'kind': give a CSV file with the columns text and kind"),
        ("a.jsonl", '{"text": "a"}\n', r"text 1 of .*a\.jsonl has no label 'kind': give each text one, or a list"),
        ("a.jsonl", '{"text": "a", "kind": true}\n', "has no label 'kind'"),
        ("a.txt", "a\n", r"a\.txt has no column 'kind': give labels in a \.csv or \.jsonl file"),
    ],
)
def test_no_column_of_labels(name: str, content: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CodaError, match=message):
        read_table(tmp_path / name, "kind")


@pytest.mark.parametrize("name", ["no.csv", "no.jsonl", "no.txt"])
def test_a_table_that_is_not_there(name: str, tmp_path: Path):
    with pytest.raises(CodaError, match="does not exist: give a file with texts, .csv, .jsonl or a text a line"):
        read_table(tmp_path / name)


def test_several_labels_are_a_json_list_of_names(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "kind": ["x", "y, z"]}\n{"text": "b", "kind": []}\n')
    found = read_table(tmp_path / "a.jsonl", "kind")
    assert label_sets(found, ("x", "y, z")) == [["x", "y, z"], []]
    cells = read_table(csv(tmp_path, "text,kind", 'a,"[""x"", 1]"', "b, []"), "kind")
    assert label_sets(cells, ("1", "x")) == [["x", "1"], []]
    with pytest.raises(CodaError, match=r"line 2 of .* has the label 'x': this model knows 1, y"):
        label_sets(cells, ("1", "y"))
    for cell in ("x", "[x]", "[true]", "{}", "[0.5]"):
        table = read_table(csv(tmp_path, "text,kind", f"a,{cell}"), "kind")
        with pytest.raises(CodaError, match=r"line 2 of .* has the label '.*': give a JSON list of names, as in \["):
            label_sets(table, ("x",))


def test_labels_that_are_numbers(tmp_path: Path):
    assert label_numbers(read_table(csv(tmp_path, "text,score", "a,1", "b,-2.5e1"), "score")) == [1.0, -25.0]
    for cell in ("good", "nan", "inf", ""):
        table = read_table(csv(tmp_path, "text,score", "a,1", f"b,{cell}"), "score")
        with pytest.raises(CodaError, match=f"line 3 of .* has the label {cell!r}, and this model gives numbers"):
            label_numbers(table)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_mark_in_front_of_utf8_is_no_letter(mark: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text(f"{mark}one\n\ufefftwo\n", "utf-8")
    (tmp_path / "a.jsonl").write_text(mark + '{"text": "one"}\n', "utf-8")
    assert list(lines(StringIO(f"{mark}one\n"))) == ["one"]
    assert list(stream_texts(tmp_path / "a.txt")) == ["one", "\ufefftwo"]
    assert list(stream_texts(tmp_path / "a.jsonl")) == ["one"]
    assert list(lines(StringIO(f"{mark}\n"))) == []


def test_a_cell_may_be_long(tmp_path: Path):
    text = "good " * 40_000  # the csv module's own limit is 131072 letters
    assert read_rows(csv(tmp_path, "text,label", f"{text},pos"), NAMES) == [(text, "pos")]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no endless device")
@pytest.mark.parametrize("name", ["zero.txt", "zero.csv", "zero.jsonl"])
def test_a_line_without_an_end(name: str, tmp_path: Path):
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CodaError, match=rf"{name} has a line of more than 16777216 letters: give a text a line"):
        next(stream_texts(tmp_path / name))

"""Read texts, text pairs and labels from files, stdin and arguments."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from coda_compile.errors import CodaError
from coda_targets.modalities.text import Text

MEASURED = "--data measures the accuracy of"  # for messages
_PAIR = "text_pair"
_JSON_LINES = (".jsonl", ".ndjson")
_OTHER_TABLES = (".json", ".tsv", ".xlsx", ".parquet")
_LONGEST_LINE = 1 << 24  # letters
_SHOWN = 8  # names of a model's labels in a message
_BOM = "\ufeff"
_NOT_UTF8 = "{source} is not UTF-8 text: convert it, for example with iconv"


@dataclass(frozen=True)
class Row:
    """A text, or pair of texts, of a file.

    Attributes:
        label: as the file has it, several as a JSON list of their names; empty where none was asked for.
        where: it stands, for messages.
    """

    text: Text
    label: str
    where: str


def read_rows(path: Path, labels: tuple[str, ...]) -> list[tuple[Text, str]]:
    """Text and label of every row of a CSV file.

    All labels of a file are the model's names, or all are its numbers. A model whose names are numbers themselves takes
    names alone.

    Args:
        path: with the columns ``text`` and ``label``, and ``text_pair`` where there are pairs.

    Raises:
        CodaError: what is wrong with the file, and where.
    """
    rows = list(_csv_rows(path, "label"))
    return list(zip((row.text for row in rows), label_names(rows, labels), strict=True))


def label_names(rows: Sequence[Row], labels: tuple[str, ...]) -> list[str]:
    """Each row's label by the model's name for it, of rows that hold names alone or numbers alone.

    Raises:
        CodaError: a label that the model does not know, and where it stands.
    """
    known = dict(zip(labels, labels, strict=True))
    if rows[0].label not in known and not any(map(_is_number, labels)):
        known = {str(i): name for i, name in enumerate(labels)}
    for row in rows:
        if row.label not in known:
            expected = _expected(row.label, rows[0].label, labels)
            raise CodaError(f"{row.where} has the label {row.label!r}: {expected}")
    return [known[row.label] for row in rows]


def label_numbers(rows: Sequence[Row]) -> list[float]:
    """Each row's label as a number.

    Raises:
        CodaError: one that is none, and where it stands.
    """
    for row in rows:
        if not _is_finite(row.label):
            raise CodaError(f"{row.where} has the label {row.label!r}, and this model gives numbers: write one")
    return [float(row.label) for row in rows]


def label_sets(rows: Sequence[Row], labels: tuple[str, ...]) -> list[list[str]]:
    """Each row's labels by the model's names for them, of rows that hold JSON lists of names.

    Raises:
        CodaError: a cell that is no such list, or a name that the model does not know, and where it stands.
    """
    found = []
    for row in rows:
        names = listed(row.label)
        if names is None:
            raise CodaError(f'{row.where} has the label {row.label!r}: give a JSON list of names, as in ["a", "b"]')
        if strange := [name for name in names if name not in labels]:
            raise CodaError(f"{row.where} has the label {strange[0]!r}: this model knows {', '.join(labels)}")
        found.append(names)
    return found


def listed(cell: str) -> list[str] | None:
    """The names that a cell lists; ``None`` where it is no JSON list of names, text or whole numbers."""
    if not cell.lstrip().startswith("["):
        return None
    try:
        names: Any = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return [str(name) for name in names] if _all_names(names) else None


def _all_names(names: list[Any]) -> bool:
    return all(isinstance(name, str | int) and not isinstance(name, bool) for name in names)


def read_table(path: Path, label: str | None = None) -> list[Row]:
    """Every row of a file as ``stream_texts`` knows it, with its label where one is asked for.

    Args:
        label: the column of a CSV file, or the key of JSON lines, that holds labels.

    Raises:
        CodaError: what is wrong with the file, and where.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CodaError(f"{path} {what}: give a file with texts, .csv, .jsonl or a text a line")
    if label is not None and path.suffix.lower() not in (".csv", *_JSON_LINES):
        raise CodaError(f"{path} has no column {label!r}: give labels in a .csv or .jsonl file")
    return list(_stream(path, label))


def _expected(cell: str, first: str, labels: tuple[str, ...]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    knows = f"this model knows {', '.join(labels[:_SHOWN])}{more}"
    numbered = [str(i) for i in range(len(labels))]
    if any(map(_is_number, labels)):
        return f"{knows}, and takes no numbers of labels, since some of its labels are numbers"
    if {cell, first} <= {*labels, *numbered}:
        return f"the first one is {first!r}, and a file holds names of labels alone or numbers alone"
    if labels == tuple(f"LABEL_{i}" for i in range(len(labels))):  # transformers' own, where nobody gave others
        return f"{knows}, which nobody named: write numbers from 0 on, or give the model its labels"
    return knows


def _is_number(name: str) -> bool:
    """Whether a label reads as one, with a sign as well."""
    try:
        int(name)
    except ValueError:
        return False
    return True


def _is_finite(number: str) -> bool:
    try:
        return isfinite(float(number))
    except ValueError:
        return False


def read_texts(path: Path) -> list[Text]:
    """The text, or pair of texts, of every row of a CSV file, whatever its label.

    Raises:
        CodaError: what is wrong with the file.
    """
    return [row.text for row in _csv_rows(path, None)]


def stream_texts(path: Path) -> Iterator[Text]:
    """The texts of a file, as they are needed.

    A file that ends in ``.csv`` has the columns ``text`` and, of pairs, ``text_pair``; one that ends in ``.jsonl`` such
    an object a line; any other a text a line.

    Raises:
        CodaError: what is wrong with the file, and where; one that holds pairs and single texts, too.
    """
    yield from (row.text for row in _stream(path))


def _stream(path: Path, label: str | None = None) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from _csv_rows(path, label)
        return
    if kind in _OTHER_TABLES:
        raise CodaError(f"{path} is a {kind} file: give .csv, .jsonl, or a text a line in a file of another name")
    with path.open(encoding="utf-8") as file:
        paired = None
        for i, line in enumerate(lines(file, str(path)), 1):
            where = f"text {i} of {path}"
            row = _object(line, where, label) if kind in _JSON_LINES else Row(line, "", where)
            if paired is not None and isinstance(row.text, tuple) != paired:
                raise CodaError(f"{where} is {'single' if paired else 'a pair'} and those before it are not")
            paired = isinstance(row.text, tuple)
            yield row


def lines(file: TextIO, source: str = "the input") -> Iterator[str]:
    """A text a line; none of an empty one, and without the mark that some programs put in front of UTF-8.

    Args:
        source: for messages.

    Raises:
        CodaError: what is not UTF-8, or a line without an end.
    """
    try:
        for i, line in enumerate(_bounded(file, source)):
            own = line.removeprefix(_BOM) if i == 0 else line
            if own.strip():
                yield utf8(own.rstrip("\n"))
    except UnicodeDecodeError:
        raise CodaError(_NOT_UTF8.format(source=source)) from None


def _bounded(file: TextIO, source: str | Path) -> Iterator[str]:
    """The lines of a file, unless one has no end, as in /dev/zero."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            raise CodaError(f"{source} has a line of more than {_LONGEST_LINE} letters: give a text a line")
        yield line


def pairs(texts: Sequence[str], others: Sequence[str]) -> list[Text]:
    """Texts with the ones that stand beside them: one with each, each with one, or as many, in order.

    Raises:
        CodaError: other numbers of them.
    """
    if not others:
        return list(texts)
    if 1 not in (len(texts), len(others)) and len(texts) != len(others):
        raise CodaError(
            f"{len(texts)} texts and {len(others)} of --text-pair make no pairs: give one of either, or as many"
        )
    most = max(len(texts), len(others))
    firsts, seconds = (list(some) * most if len(some) == 1 else list(some) for some in (texts, others))
    return list(zip(firsts, seconds, strict=True))


def columns(texts: Sequence[Text]) -> dict[str, list[str]]:
    """Texts, all single or all pairs, as arguments of a transformers tokenizer."""
    if isinstance(texts[0], str):
        return {"text": [text for text in texts if isinstance(text, str)]}
    firsts, seconds = zip(*texts, strict=True)
    return {"text": list(firsts), _PAIR: list(seconds)}


def length(text: Text) -> int:
    """In letters."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def named(text: Text) -> dict[str, str]:
    """A text as one of the objects that ``stream_texts`` reads."""
    return {"text": text} if isinstance(text, str) else dict(zip(("text", _PAIR), text, strict=True))


def utf8(text: str) -> str:
    """Refuse the lone surrogates that Python reads foreign bytes of arguments and stdin as."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CodaError(_NOT_UTF8.format(source="the input"))
    return text


def _text(row: dict[str, str | None]) -> Text:
    first = row["text"] or ""
    return (first, row[_PAIR] or "") if _PAIR in row else first


def _object(line: str, where: str, label: str | None) -> Row:
    try:
        plain: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise CodaError(f"{where} is not JSON: give an object with the keys text and, of pairs, {_PAIR}") from None
    first, second = (plain.get("text"), plain.get(_PAIR)) if isinstance(plain, dict) else (None, None)
    if not isinstance(first, str) or not isinstance(second, str | None):
        raise CodaError(f"{where} holds no text: give an object with the keys text and, of pairs, {_PAIR}")
    cell = "" if label is None else plain.get(label)
    if isinstance(cell, list) and _all_names(cell):
        cell = json.dumps(cell)  # as a cell of a CSV file holds several
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise CodaError(f"{where} has no label {label!r}: give each text one, or a list of names")
    _check_names(plain, where, label)
    text = utf8(first) if second is None else (utf8(first), utf8(second))
    return Row(text, str(cell), where)


def _check_names(names: Iterable[str], where: str, label: str | None = None) -> None:
    """Refuse what was meant to be one of the names that are read, and would be left out in silence."""
    given = set(names)
    for meant in {"text", _PAIR, "label"} - given:
        careless = (name for name in sorted(given - {label}) if _letters(name).removesuffix("s") == _letters(meant))
        if (name := next(careless, None)) is not None:
            raise CodaError(f"{where} has {name!r}, which is not read: write {meant!r}")


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _csv_rows(path: Path, label: str | None) -> Iterator[Row]:
    wanted = ("text",) if label is None else ("text", label)
    for row, line in _rows(path, wanted):
        yield Row(_text(row), "" if label is None else row[label] or "", f"line {line} of {path}")


def _rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[dict[str, str | None], int]]:
    """Every row with the number of its last line; of two names the second is labels'."""
    asked = f"the column{'s' if len(wanted) > 1 else ''} {' and '.join(wanted)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(_LONGEST_LINE)  # a cell may be as long as a line of text
            reader = csv.DictReader(_bounded(file, path), strict=True)
            names = list(reader.fieldnames or ())
            if twice := [name for name in names if names.count(name) > 1]:
                raise CodaError(f"{path} has two columns {twice[0]!r}: give each one a name of its own")
            missing = sorted(set(wanted) - set(names))
            if missing:
                raise CodaError(f"{path} has no column {missing[0]!r}: give a CSV file with {asked}")
            _check_names(names, str(path), *wanted[1:])
            empty = True
            for row in reader:
                empty = False
                if None in row:
                    raise CodaError(
                        f"line {reader.line_num} of {path} has more cells than the header: quote texts that hold commas"
                    )
                if None in row.values():
                    raise CodaError(f"line {reader.line_num} of {path} has fewer cells than the header: fill it up")
                yield row, reader.line_num
            if empty:
                raise CodaError(f"{path} has no rows below its header")
    except FileNotFoundError:
        raise CodaError(f"{path} does not exist: give a CSV file with {asked}") from None
    except UnicodeDecodeError:
        raise CodaError(f"{path} is not UTF-8 text: convert it, for example with iconv") from None
    except csv.Error as error:
        raise CodaError(f"{path} cannot be read as CSV: {error}") from None

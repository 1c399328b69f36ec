"""Read texts, text pairs and labels from files, stdin and arguments."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from coda_compile.errors import CodaError
from coda_targets.modalities.text import Text

MEASURED = "--data measures the accuracy of"  # for messages
_PAIR = "text_pair"
_JSON_LINES = (".jsonl", ".ndjson")
_OTHER_TABLES = (".json", ".tsv", ".xlsx", ".parquet")
_NOT_UTF8 = "the input is not UTF-8 text: convert it, for example with iconv"


def read_rows(path: Path, labels: tuple[str, ...]) -> list[tuple[Text, str]]:
    """Text and label of every row of a CSV file.

    All labels of a file are the model's names, or all are its numbers. A model whose names are numbers themselves takes
    names alone.

    Args:
        path: with the columns ``text`` and ``label``, and ``text_pair`` where there are pairs.

    Raises:
        CodaError: what is wrong with the file, and where.
    """
    rows = list(_rows(path, ("text", "label")))
    cells = [row["label"] or "" for row, _ in rows]
    known = dict(zip(labels, labels, strict=True))
    if cells[0] not in known and not any(map(_is_number, labels)):
        known = {str(i): name for i, name in enumerate(labels)}
    for cell, (_, line) in zip(cells, rows, strict=True):
        if cell not in known:
            raise CodaError(f"line {line} of {path} has the label {cell!r}: {_expected(cell, cells[0], labels)}")
    return [(_text(row), known[cell]) for cell, (row, _) in zip(cells, rows, strict=True)]


def _expected(cell: str, first: str, labels: tuple[str, ...]) -> str:
    knows = f"this model knows {', '.join(labels)}"
    numbered = [str(i) for i in range(len(labels))]
    if any(map(_is_number, labels)):
        return f"{knows}, and takes no numbers of labels, since some of its labels are numbers"
    if {cell, first} <= {*labels, *numbered}:
        return f"the first one is {first!r}, and a file holds names of labels alone or numbers alone"
    return knows


def _is_number(name: str) -> bool:
    """Whether a label reads as one, with a sign as well."""
    try:
        int(name)
    except ValueError:
        return False
    return True


def read_texts(path: Path) -> list[Text]:
    """The text, or pair of texts, of every row of a CSV file, whatever its label.

    Raises:
        CodaError: what is wrong with the file.
    """
    return [_text(row) for row, _ in _rows(path, ("text",))]


def stream_texts(path: Path) -> Iterator[Text]:
    """The texts of a file, as they are needed.

    A file that ends in ``.csv`` has the columns ``text`` and, of pairs, ``text_pair``; one that ends in ``.jsonl`` such
    an object a line; any other a text a line.

    Raises:
        CodaError: what is wrong with the file, and where; one that holds pairs and single texts, too.
    """
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from (_text(row) for row, _ in _rows(path, ("text",)))
        return
    if kind in _OTHER_TABLES:
        raise CodaError(f"{path} is a {kind} file: give .csv, .jsonl, or a text a line in a file of another name")
    with path.open(encoding="utf-8-sig") as file:
        paired = None
        for i, line in enumerate(lines(file), 1):
            text = _object(line, f"text {i} of {path}") if kind in _JSON_LINES else line
            if paired is not None and isinstance(text, tuple) != paired:
                raise CodaError(f"text {i} of {path} is {'single' if paired else 'a pair'} and those before it are not")
            paired = isinstance(text, tuple)
            yield text


def lines(file: Iterable[str]) -> Iterator[str]:
    """A text a line; none of an empty one.

    Raises:
        CodaError: what is not UTF-8.
    """
    try:
        yield from (utf8(line.rstrip("\n")) for line in file if line.strip())
    except UnicodeDecodeError:
        raise CodaError(_NOT_UTF8) from None


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
        raise CodaError(_NOT_UTF8)
    return text


def _text(row: dict[str, str | None]) -> Text:
    first = row["text"] or ""
    return (first, row[_PAIR] or "") if _PAIR in row else first


def _object(line: str, where: str) -> Text:
    try:
        plain: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise CodaError(f"{where} is not JSON: give an object with the keys text and, of pairs, {_PAIR}") from None
    first, second = (plain.get("text"), plain.get(_PAIR)) if isinstance(plain, dict) else (None, None)
    if not isinstance(first, str) or not isinstance(second, str | None):
        raise CodaError(f"{where} holds no text: give an object with the keys text and, of pairs, {_PAIR}")
    _check_names(plain, where)
    return utf8(first) if second is None else (utf8(first), utf8(second))


def _check_names(names: Iterable[str], where: str) -> None:
    """Refuse what was meant to be one of the names that are read, and would be left out in silence."""
    given = set(names)
    for meant in {"text", _PAIR, "label"} - given:
        careless = (name for name in sorted(given) if _letters(name).removesuffix("s") == _letters(meant))
        if (name := next(careless, None)) is not None:
            raise CodaError(f"{where} has {name!r}, which is not read: write {meant!r}")


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[dict[str, str | None], int]]:
    """Every row with the number of its last line."""
    asked = f"the column{'s' if len(wanted) > 1 else ''} {' and '.join(wanted)}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            if twice := [name for name in names if names.count(name) > 1]:
                raise CodaError(f"{path} has two columns {twice[0]!r}: give each one a name of its own")
            missing = sorted(set(wanted) - set(names))
            if missing:
                raise CodaError(f"{path} has no column {missing[0]!r}: give a CSV file with {asked}")
            _check_names(names, str(path))
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

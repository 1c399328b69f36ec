"""Routing of one sequence: which layers routed each word."""

from dataclasses import dataclass
from typing import Any

from coda_compile.errors import CodaError
from coda_compile.inspect.predict import RoutedWords, predict
from coda_targets import Bundle

MOST_WORDS = 120  # drawn in the map; all of them stand in the text and the table
SAMPLE = (
    "The first hour is slow, almost stubborn, and I was ready to walk out. Then the storm arrives, the brothers "
    "finally talk, and the film wakes up. Nothing is explained twice. The camera stays on faces a little longer than "
    "is comfortable, the music keeps quiet, and a plot that looked borrowed turns out to be honest. It is not a "
    "perfect film, the ending hurries, but I have thought about it every day since."
)


@dataclass(frozen=True)
class RoutedText:
    """One text with its result.

    Attributes:
        heavy: for each word, how many layers sent it through their heavy path.
        result: in words.
    """

    words: RoutedWords
    heavy: list[int]
    result: str


def route_text(bundle: Bundle, text: str) -> RoutedText:
    """Run one text and read what every layer routed.

    Raises:
        CodaError: a text without words or not in UTF-8, or a bundle without a tokenizer.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CodaError("the text is not UTF-8: convert it, for example with iconv")
    ((_, record, words),) = predict(bundle, [text], routing=True)
    assert words is not None
    if not words.words:
        raise CodaError("the text holds no words: give another with --text")
    heavy = [sum(flags) for flags in zip(*(routed for _, routed in words.layers), strict=True)]
    return RoutedText(words, heavy or [0] * len(words.words), _result(record))


def _result(record: dict[str, Any]) -> str:
    if "label" in record:
        return f"{record['label']}, score {record['score']:.2f}"
    if "labels" in record:
        return ", ".join(f"{one['label']} {one['score']:.2f}" for one in record["labels"])
    if "tokens" in record:
        return f"{len(record['tokens'])} labelled tokens"
    return f"an embedding of {len(record['embedding'])} numbers"

"""Predictions for texts, batch by batch, with the words that each layer routed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from coda_targets import Bundle
from coda_targets.routing import Decision, RoutingProbe
from coda_targets.text import TextCodec

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True)
class RoutedWords:
    """Which words took the heavy path.

    Attributes:
        words: of the text as the model saw it, after truncation.
        layers: (layer, one flag a word), bottom first; a word counts as routed when any of its tokens was.
    """

    words: list[str]
    layers: list[tuple[int, list[bool]]]


def predict(
    bundle: Bundle, texts: Iterable[str], *, batch: int = 8, routing: bool = False, task: str | None = None
) -> Iterator[tuple[str, dict[str, Any], RoutedWords | None]]:
    """Yield each text with its result and, when asked for, its routing.

    Args:
        task: of a bundle with several; the first one where none is named.
        batch: texts run at once; results do not depend on it beyond float noise.
    """
    codec = TextCodec(bundle, task)
    probe = RoutingProbe.of(bundle) if routing else None
    remaining = iter(texts)
    while chunk := list(islice(remaining, batch)):
        encoded = codec.encode(chunk)
        decisions: list[Decision] = []
        if probe is None:
            outputs = bundle.run(encoded.inputs, task=task)
        else:
            outputs, decisions = probe.run(bundle.prepare(encoded.inputs), bundle.adapter(task))
        records = codec.decode(outputs, encoded)
        for i, (text, record) in enumerate(zip(chunk, records, strict=True)):
            yield text, record, routed_words(text, encoded.encodings[i], decisions, i) if routing else None


def routed_words(text: str, encoding: "Encoding", decisions: list[Decision], example: int) -> RoutedWords:
    """Map routed token positions back to the words of a text."""
    spans: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if word is not None:
            first, last = spans.get(word, (start, end))
            spans[word] = (min(first, start), max(last, end))
    layers = []
    for decision in decisions:
        heavy = {encoding.word_ids[position] for position in decision.selected(example)}
        layers.append((decision.layer, [word in heavy for word in spans]))
    return RoutedWords([text[start:end] for start, end in spans.values()], layers)

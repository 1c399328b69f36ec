"""Predictions batch by batch, with the words that each layer routed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from coda_targets import Bundle
from coda_targets.errors import InputError
from coda_targets.modalities.text import TEXT, Text
from coda_targets.routing import Decision, RoutingProbe, prompt_tokens

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
    bundle: Bundle,
    texts: Iterable[Text],
    *,
    batch: int = 8,
    routing: bool = False,
    task: str | None = None,
    raw: bool = False,
) -> Iterator[tuple[Text, dict[str, Any], RoutedWords | None]]:
    """Yield each text, or pair of texts, with its result and, when asked for, its routing.

    Args:
        task: of a bundle with several; the first one where none is named.
        batch: texts run at once; results do not depend on it beyond float noise.
        raw: logits instead of scores.
    """
    if routing and (modality := bundle.manifest.signature.modality) != TEXT:
        raise InputError(f"{bundle.folder} takes {modality}, and routing is shown in words of text: leave it out")
    codec = bundle.codec(task)
    probe = RoutingProbe.of(bundle) if routing else None
    prompt = prompt_tokens(bundle.manifest)
    remaining = iter(texts)
    while chunk := list(islice(remaining, batch)):
        encoded = codec.encode(chunk)
        decisions: list[Decision] = []
        if probe is None:
            outputs = bundle.run(encoded.inputs, task=task)
        else:
            outputs, decisions = probe.run(bundle.prepare(encoded.inputs), bundle.adapter(task))
        records = codec.decode(outputs, encoded, raw=raw)
        for i, (text, record) in enumerate(zip(chunk, records, strict=True)):
            routed = routed_words(text, encoded.encodings[i], decisions, i, prompt) if routing else None
            yield text, record, routed


def routed_words(text: Text, encoding: "Encoding", decisions: list[Decision], example: int, prompt: int) -> RoutedWords:
    """Map routed token positions, behind a prompt of some tokens, back to the words of a text, or of both of a pair."""
    words = list(zip(encoding.sequence_ids, encoding.word_ids, strict=True))  # numbered in each text by itself
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    for word, (start, end) in zip(words, encoding.offsets, strict=True):
        if None not in word:
            first, last = spans.get(word, (start, end))
            spans[word] = (min(first, start), max(last, end))
    layers = []
    for decision in decisions:
        heavy = {words[i - prompt] for i in decision.selected(example) if i >= prompt}
        layers.append((decision.layer, [word in heavy for word in spans]))
    texts = (text,) if isinstance(text, str) else text
    return RoutedWords([texts[which][start:end] for (which, _), (start, end) in spans.items()], layers)

"""Text: what encoders take of it, and from text to arrays and from logits to labels by the tokenizer in a bundle."""

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coda_targets.errors import BundleError, InputError, TargetError
from coda_targets.manifest import MANIFEST, MULTI_LABEL, REGRESSION
from coda_targets.signature import BATCH, Arrays, Input, Signature

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from coda_targets.bundle import Bundle

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"  # as transformers calls them
TEXT = "text"
Text = str | tuple[str, str]  # a pair for models that compare two, such as cross-encoders


def text_signature(vocabulary: int, max_length: int, *, padding: int = 0, types: int | None = None) -> Signature:
    """The inputs of a text encoder: token ids, a mask and, where it has them, token types. [batch, sequence] each

    Args:
        vocabulary: how many token ids there are.
        padding: the token id that stands behind the end of a sequence.
        types: how many token types there are; ``None`` where the model takes none.
    """
    axes = (BATCH, "sequence")
    inputs = [Input(IDS, "int64", axes, "ids", vocabulary, padding), Input(MASK, "int64", axes, "mask")]
    if types is not None:
        inputs.append(Input(TYPES, "int64", axes, "types", types))
    return Signature(TEXT, tuple(inputs), max_length)


@dataclass(frozen=True)
class Encoded:
    """A batch of texts as the model takes it.

    Attributes:
        inputs: arrays by name, [batch, sequence].
        encodings: the tokenizer's own records, with offsets into the texts.
    """

    inputs: Arrays
    encodings: "list[Encoding]"


class TextCodec:
    """Tokenise texts and name results for one bundle, and of several tasks for one.

    Raises:
        BundleError: the bundle has no tokenizer, or a model that takes more than one gives.
        InputError: no such task, or a model that does not take text.
        TargetError: the tokenizers library is not installed.
    """

    def __init__(self, bundle: "Bundle", task: str | None = None) -> None:
        self._manifest = bundle.manifest
        if (modality := self._manifest.signature.modality) != TEXT:
            raise InputError(f"{bundle.folder} takes {modality}, not text: feed arrays through Bundle.run")
        if strange := set(self._manifest.signature.names) - {IDS, MASK, TYPES}:
            raise BundleError(
                f"{bundle.folder} takes {min(strange)!r}, which no tokenizer gives: compile the model again"
            )
        self._labels = bundle.labels(task)
        self._logits = bundle.logits(task)
        with bundle.reading(TOKENIZER, _CONFIG):
            self._tokenizer = _load(bundle.folder)
            self._types = _tells_types(bundle.folder)
        self._tokenizer.enable_padding(**_padding(self._tokenizer))

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Tokenise texts or pairs of them, truncate as the model was trained to, and pad to the longest.

        A pair that is too long loses tokens of its longer text first, as it does in transformers. An empty second text
        makes a pair as well.

        Raises:
            InputError: something that is neither a text nor a tuple of two, or a text that UTF-8 cannot hold.
        """
        encodings = self._tokenizer.encode_batch([_checked(text) for text in texts])
        columns = {
            IDS: [e.ids for e in encodings],
            MASK: [e.attention_mask for e in encodings],
            TYPES: [e.type_ids if self._types else [0] * len(e.ids) for e in encodings],
        }
        inputs = self._manifest.signature.inputs
        return Encoded({one.name: np.asarray(columns[one.name], dtype=one.dtype) for one in inputs}, encodings)

    def decode(self, outputs: Arrays, encoded: Encoded, *, raw: bool = False) -> list[dict[str, Any]]:
        """One prediction per sequence, with scores as in transformers' pipelines.

        ``label`` and ``score`` where one label is right or there is but one number, ``labels``, best first, where each
        is right or wrong by itself, ``tokens`` with a label and a score each, or an ``embedding``.

        Args:
            raw: give ``logits`` instead of scores, of every label in the model's order.

        Raises:
            InputError: raw logits of a model that has none.
            BundleError: the manifest names more labels than there are logits, or fewer.
        """
        if self._logits is None:
            if raw:
                raise InputError(f"raw logits are a classifier's, and this model does {self._manifest.task}")
            return [{"embedding": [float(x) for x in row]} for row in outputs["sentence_embedding"]]
        if outputs["logits"].shape[-1] != len(self._labels):
            raise BundleError(
                f"the model tells {outputs['logits'].shape[-1]} labels apart and {MANIFEST} names {len(self._labels)}: "
                "compile the model again"
            )
        values = outputs["logits"] if raw else scores(outputs["logits"], self._logits.activation)
        name = self._all if raw else self._some
        if self._manifest.task == "sequence-classification":
            records = [name(row) for row in values]
            if "ood_score" in outputs:
                for record, score, flag in zip(records, outputs["ood_score"], outputs["is_ood"], strict=True):
                    record |= {"ood_score": float(score), "is_ood": bool(flag)}
            return records
        return [
            {
                "tokens": [
                    {"token": token, **name(value)}
                    for token, special, value in zip(e.tokens, e.special_tokens_mask, row, strict=True)
                    if not special
                ]
            }
            for e, row in zip(encoded.encodings, values, strict=True)
        ]

    def _all(self, logits: NDArray[Any]) -> dict[str, Any]:
        named = zip(self._labels, logits, strict=True)
        return {"logits": [{"label": label, "logit": float(logit)} for label, logit in named]}

    def _some(self, scored: NDArray[Any]) -> dict[str, Any]:
        records = [{"label": label, "score": float(score)} for label, score in zip(self._labels, scored, strict=True)]
        kind = None if self._logits is None else self._logits.problem_type
        if kind == MULTI_LABEL or (kind == REGRESSION and len(records) > 1):
            return {"labels": sorted(records, key=lambda record: -record["score"])}
        return records[int(scored.argmax())]


def scores(logits: NDArray[Any], activation: str) -> NDArray[np.float64]:
    """What an activation of the manifest makes of logits, over the last axis.

    In float64, where scores of logits beyond 17 are still apart.
    """
    values = logits.astype(np.float64)
    if activation == "softmax":
        return softmax(values)
    return np.exp(-np.logaddexp(0.0, -values)) if activation == "sigmoid" else values


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: NDArray[Any] = shifted / shifted.sum(-1, keepdims=True)
    return probabilities


def _checked(text: Any) -> Text:
    """A text, or a pair; tokenizers itself would tell of others in its own types."""
    parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    for part in parts:
        if not isinstance(part, str):
            raise InputError(f"{reprlib.repr(text)} is no text: give a string, or a tuple of two strings for a pair")
        try:
            part.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{reprlib.repr(text)} holds a lone surrogate, which no UTF-8 has: decode it anew"
            ) from None
    return text  # type: ignore[no-any-return]


def _load(folder: Path) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TargetError("running on text needs the tokenizers library: pip install tokenizers") from None
    path = folder / TOKENIZER
    if not path.is_file():
        raise BundleError(
            f"{folder} holds no tokenizer: feed token ids through Bundle.run, or compile with --tokenizer"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{path} is damaged: {error}; compile the model again") from None


def _tells_types(folder: Path) -> bool:
    """Whether the tokenizer tells the second text of a pair from the first; in transformers not all do."""
    path = folder / _CONFIG
    if not path.is_file():
        return True
    try:
        names = json.loads(path.read_text("utf-8")).get("model_input_names")
        return names is None or TYPES in names
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise BundleError(f"{path} is damaged: it is no tokenizer's; compile the model again") from None


def _padding(tokenizer: "Tokenizer") -> dict[str, Any]:
    known = tokenizer.padding or {}
    return {"pad_id": known.get("pad_id", 0), "pad_token": known.get("pad_token", "[PAD]")}

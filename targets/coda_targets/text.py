"""From text to arrays and from logits to labels, with the tokenizer that a bundle carries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coda_targets.bundle import Arrays, Bundle
from coda_targets.errors import BundleError, TargetError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOKENIZER = "tokenizer.json"


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
        BundleError: the bundle has no tokenizer.
        InputError: no such task.
        TargetError: the tokenizers library is not installed.
    """

    def __init__(self, bundle: Bundle, task: str | None = None) -> None:
        self._manifest = bundle.manifest
        self._labels = bundle.labels(task)
        with bundle.reading(TOKENIZER):
            self._tokenizer = _load(bundle.folder)
        self._tokenizer.enable_padding(**_padding(self._tokenizer))

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenise, truncate as the model was trained to, and pad to the longest."""
        encodings = self._tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [e.ids for e in encodings],
            "attention_mask": [e.attention_mask for e in encodings],
            "token_type_ids": [e.type_ids for e in encodings],
        }
        wanted = [tensor.name for tensor in self._manifest.inputs]
        return Encoded({name: np.asarray(columns[name], dtype=np.int64) for name in wanted}, encodings)

    def decode(self, outputs: Arrays, encoded: Encoded) -> list[dict[str, Any]]:
        """One plain record a text: label and probability, labelled tokens, or an embedding."""
        if self._manifest.task == "feature-extraction":
            return [{"embedding": [float(x) for x in row]} for row in outputs["sentence_embedding"]]
        probabilities = softmax(outputs["logits"])
        if self._manifest.task == "sequence-classification":
            records = [self._best(row) for row in probabilities]
            if "ood_score" in outputs:
                for record, score, flag in zip(records, outputs["ood_score"], outputs["is_ood"], strict=True):
                    record |= {"ood_score": float(score), "is_ood": bool(flag)}
            return records
        return [
            {
                "tokens": [
                    {"token": token, **self._best(p)}
                    for token, special, p in zip(e.tokens, e.special_tokens_mask, row, strict=True)
                    if not special
                ]
            }
            for e, row in zip(encoded.encodings, probabilities, strict=True)
        ]

    def _best(self, probabilities: NDArray[Any]) -> dict[str, Any]:
        best = int(probabilities.argmax())
        return {"label": self._labels[best], "score": float(probabilities[best])}


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: NDArray[Any] = shifted / shifted.sum(-1, keepdims=True)
    return probabilities


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


def _padding(tokenizer: "Tokenizer") -> dict[str, Any]:
    known = tokenizer.padding or {}
    return {"pad_id": known.get("pad_id", 0), "pad_token": known.get("pad_token", "[PAD]")}

"""Fit an out-of-distribution detector on in-distribution examples, to be compiled into the graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coda_compile.bundling.writer import label_names, logits_of
from coda_compile.errors import CompileError, OptionError
from coda_compile.logits import check_one_label
from coda_compile.text_files import columns, length, read_rows
from coda_compile.threads import map_in_threads, one_thread
from coda_models.model import CodaModel
from coda_models.ood import FITTED, Cosine, FromLogits, Mahalanobis, OodDetector
from coda_targets.manifest import LogitsInfo
from coda_targets.modalities.text import Text
from coda_targets.signature import Signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = 0.95
_FEWEST = 20  # texts that a threshold is taken from: one of them lies above
_MOST_KNOWN = 4096  # texts that a bundle remembers for the cosine
_SINGULAR = 1e-7  # smallest eigenvalue over the largest: float32 cannot hold the inverse of less
_BATCH = 16


@dataclass(frozen=True)
class Classifier:
    """What a detector is fitted on.

    Attributes:
        task: a classifier's, or else there is no fitting.
        labels: in order of the logits.
        logits: what they mean.
        signature: what it takes.
        answer: what stands for each text of a batch, [texts, width], and its logits, [texts, labels].
    """

    task: str
    labels: tuple[str, ...]
    logits: LogitsInfo | None
    signature: Signature
    answer: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, model: CodaModel) -> "Classifier":
        """A model in evaluation mode."""

        def answer(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            output = model(**inputs)
            return output.features, output.logits

        return cls(model.coda_config.task, label_names(model), logits_of(model), model.signature, answer)


def check(task: str, logits: LogitsInfo | None, labels: tuple[str, ...]) -> None:
    """Refuse a model that has no such score, before anything else is done.

    Raises:
        CodaError: it does not choose one label of several for a text.
    """
    check_one_label("out-of-distribution scores are for", task, logits, labels)


def fit(
    model: CodaModel | Classifier, tokenizer: "PreTrainedTokenizerBase | None", method: str, data: Path
) -> OodDetector:
    """Fit a detector on the examples of a file.

    Cosine and Mahalanobis are fitted on four fifths of the texts, drawn by a fixed seed, and take their threshold from
    the others; the other scores have nothing to fit and take it from all.

    Args:
        model: as it will be compiled, in evaluation mode.
        data: CSV with the columns ``text`` and ``label``, texts that the model is meant for.

    Raises:
        CompileError: too few texts.
        OptionError: too few classes, features that do not vary, or no tokenizer.
        CodaError: a file that is not as described, or a label that the model does not know.
    """
    known = Classifier.of(model) if isinstance(model, CodaModel) else model
    check(known.task, known.logits, known.labels)
    if tokenizer is None:
        raise OptionError("this model has no tokenizer to read {ood_data} with: give a {tokenizer}")
    rows = read_rows(data, known.labels)
    needed = _FEWEST * 5 if method in FITTED else _FEWEST
    if len(rows) < needed:
        raise CompileError(f"{data} has {len(rows)} texts, and {method} needs {needed} or more to set a threshold")
    features, logits = embed(known, tokenizer, [text for text, _ in rows])
    return detector(method, features, logits, [label for _, label in rows], str(data))


def detector(method: str, features: Tensor, logits: Tensor, labels: Sequence[str], where: str) -> OodDetector:
    """As ``fit``, from what ``embed`` gave for the texts; ``where`` they come from is for messages."""
    held_out = np.zeros(len(labels), bool)
    if method in FITTED:
        held_out[np.random.default_rng(0).permutation(len(labels))[: len(labels) // 5]] = True
    score = _fitted(method, features[~held_out], np.array(labels)[~held_out], where)
    chosen = torch.from_numpy(held_out if method in FITTED else ~held_out)
    with one_thread(), torch.inference_mode():
        scores = score(features[chosen], logits[chosen]).numpy()
    threshold = float(np.quantile(scores, KEPT, method="higher"))
    return OodDetector(method, score, threshold, KEPT).eval()


def embed(
    model: CodaModel | Classifier, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text]
) -> tuple[Tensor, Tensor]:
    """What stands for each text, [texts, width], and its logits, [texts, labels]."""
    known = Classifier.of(model) if isinstance(model, CodaModel) else model
    order = sorted(range(len(texts)), key=lambda i: length(texts[i]))  # so that batches are short where texts are
    encoded = (
        tokenizer(
            **columns([texts[i] for i in order[start : start + _BATCH]]),
            truncation=True,
            max_length=known.signature.max_length,
            padding=True,
            return_tensors="pt",
        )
        for start in range(0, len(order), _BATCH)
    )
    batches = ({name: one[name] for name in known.signature.names if name in one} for one in encoded)
    features, logits = (torch.cat(kind).float() for kind in zip(*map_in_threads(known.answer, batches), strict=True))
    place = torch.tensor(order).argsort()
    return features[place], logits[place]


def _fitted(method: str, features: Tensor, labels: NDArray[np.str_], where: str) -> nn.Module:
    if method == "cosine":
        kept = np.random.default_rng(0).permutation(len(features))[:_MOST_KNOWN]
        return Cosine(features[torch.from_numpy(np.sort(kept))])
    return _mahalanobis(features.double().numpy(), labels, where) if method == "mahalanobis" else FromLogits(method)


def _mahalanobis(features: NDArray[np.float64], labels: NDArray[np.str_], where: str) -> Mahalanobis:
    from sklearn.covariance import ledoit_wolf
    from threadpoolctl import threadpool_limits

    classes, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise OptionError(
            "mahalanobis needs two or more texts of each of two or more classes, and {where} has {fewest} of {name!r} "
            "among {classes}: add some, or use {ood} cosine",
            where=where,
            fewest=counts.min(),
            name=str(classes[counts.argmin()]),
            classes=len(classes),
        )
    centre = features.mean(0)
    means = np.stack([features[which == i].mean(0) for i in range(len(classes))])
    with threadpool_limits(1):  # sums of any other number round otherwise
        covariance, _ = ledoit_wolf(features - means[which], assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
    if not values[0] > _SINGULAR * values[-1]:
        raise OptionError(
            "the features of the texts in {where} do not vary enough for mahalanobis, their covariance is singular: "
            "use {ood} cosine",
            where=where,
        )
    whiten = vectors / np.sqrt(values)
    return Mahalanobis(*(torch.from_numpy(array) for array in (centre, whiten, (means - centre) @ whiten)))

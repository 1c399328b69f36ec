"""Accuracy and out-of-distribution detection of a bundle on labelled data, beside its original model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coda_compile.bundling.writer import label_names
from coda_compile.errors import CodaError, OptionError, as_sentences
from coda_compile.inspect.predict import predict
from coda_compile.logits import check_one_label
from coda_compile.prepare import fit_ood
from coda_compile.sources.torch_model import TorchModel
from coda_compile.text_files import MEASURED, read_rows, read_texts
from coda_targets import Bundle
from coda_targets.modalities.text import Text


@dataclass(frozen=True)
class Separation:
    """How well a score separates out-of-distribution inputs, the positives, from in-distribution ones.

    Attributes:
        auroc: area under the ROC curve.
        aupr: average precision.
        fpr95: share of in-distribution inputs that score as high as 95 % of the others.
    """

    auroc: float
    aupr: float
    fpr95: float


@dataclass(frozen=True)
class Evaluation:
    """One model on one data set.

    Attributes:
        name: of the model.
        accuracy: share of in-distribution inputs that got their own label.
        same: share of in-distribution inputs that got the label that the first model gives.
        separation: ``None`` without a score or without out-of-distribution inputs.
        flagged: shares of the in-distribution and the other inputs above the threshold, where there is one.
    """

    name: str
    accuracy: float
    same: float
    separation: Separation | None
    flagged: tuple[float, float] | None


@dataclass(frozen=True)
class _Answers:
    labels: list[str]
    scores: list[float]
    flags: list[bool]


@as_sentences()
def evaluate(
    bundle: Bundle,
    data: Path,
    *,
    outside: Path | None = None,
    original: TorchModel | None = None,
    known: Path | None = None,
) -> list[Evaluation]:
    """Label the texts of a file with a bundle and, where it is at hand, with the model that it was made from.

    Args:
        data: CSV with the columns ``text``, ``text_pair`` of pairs, and ``label``, texts that the model is meant for.
        outside: CSV with the column ``text``, texts that it is not meant for.
        original: the eager model, at r as it comes; the bundle's r is set on it.
        known: the file that the bundle's detector was fitted on, to fit the original's on as well.

    Returns:
        The bundle first.

    Raises:
        CodaError: a bundle that does not choose one label of several for a text or has no detector, or files that are
            not as described.
    """
    manifest = bundle.manifest
    check_one_label(MEASURED, manifest.task, manifest.logits, manifest.labels)
    if outside is not None and manifest.ood is None:
        raise OptionError(
            "{folder} scores no texts: compile it with {ood}, or leave {outside} out", folder=bundle.folder
        )
    texts, labels = zip(*read_rows(data, manifest.labels), strict=True)
    others = [] if outside is None else read_texts(outside)
    if others and isinstance(others[0], str) != isinstance(texts[0], str):
        raise CodaError(f"of {data} and {outside} one holds pairs of texts and one does not: give both a text_pair")
    everyone = [("bundle", _of_bundle(bundle, [*texts, *others]))]
    if original is not None:
        if original.tokenizer is None:
            raise CodaError("the original has no tokenizer to read texts with")
        if original.model.coda_config.task != manifest.task or label_names(original.model) != manifest.labels:
            raise CodaError(f"{bundle.folder} was made from another model: it has other labels")
        everyone.append(
            ("eager original", _of_original(original, bundle, known if others else None, [*texts, *others]))
        )
    first = everyone[0][1].labels[: len(texts)]
    return [_judged(name, answers, labels, first, len(others)) for name, answers in everyone]


def _of_bundle(bundle: Bundle, texts: Sequence[Text]) -> _Answers:
    records = [record for _, record, _ in predict(bundle, texts)]
    scored = bundle.manifest.ood is not None
    return _Answers(
        [record["label"] for record in records],
        [record["ood_score"] for record in records if scored],
        [record["is_ood"] for record in records if scored],
    )


def _of_original(original: TorchModel, bundle: Bundle, known: Path | None, texts: Sequence[Text]) -> _Answers:
    model, detector = original.model, bundle.manifest.ood
    model.set_reduction([layer.reduction for layer in bundle.manifest.layers])
    assert original.tokenizer is not None
    if known is not None and detector is not None:
        model.ood = fit_ood.fit(model, original.tokenizer, detector.method, known)
    features, logits = fit_ood.embed(model, original.tokenizer, list(texts))
    labels = [bundle.manifest.labels[int(i)] for i in logits.argmax(-1)]
    if model.ood is None:
        return _Answers(labels, [], [])
    scores, flags = model.ood(features, logits)
    return _Answers(labels, scores.tolist(), flags.tolist())


def _judged(name: str, answers: _Answers, labels: Sequence[str], first: Sequence[str], others: int) -> Evaluation:
    n = len(labels)
    own = np.array(answers.labels[:n])
    separation, flagged = None, None
    if answers.scores and others:
        separation = separate(answers.scores[:n], answers.scores[n:])
    if answers.flags:
        flagged = (float(np.mean(answers.flags[:n])), float(np.mean(answers.flags[n:])) if others else float("nan"))
    same = float(np.mean(own == np.array(first)))
    return Evaluation(name, float(np.mean(own == np.array(labels))), same, separation, flagged)


def separate(known: Sequence[float], others: Sequence[float]) -> Separation:
    """How well scores separate the two; higher means out of distribution."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    truth = np.repeat([0, 1], [len(known), len(others)])
    scores = np.concatenate([known, others])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Separation(
        float(roc_auc_score(truth, scores)),
        float(average_precision_score(truth, scores)),
        float(false[np.searchsorted(true, 0.95)]),
    )

"""A linear model on words, which a transformer has to be worth more than."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from coda_compile.tune.agreement import LABEL, LABELS, Answer, Figures, accuracy
from coda_targets.modalities.text import Text

_MANY = 1000  # texts, of which a word in one alone says little


def linear_figures(
    kind: str, train: Sequence[Text], test: Sequence[Text], labels: Sequence[Any], wanted: Sequence[Answer]
) -> Figures | None:
    """Figures by name, as ``accuracy`` gives them, of TF-IDF of words and word pairs and a linear SVM, or for numbers
    ridge regression; ``None`` where scikit-learn is not installed.

    Args:
        kind: of answers.
        labels: of ``train``: a class, a 1.0 or 0.0 for each class, or a number.
        wanted: of ``test``, in the form of answers.
    """
    if find_spec("sklearn") is None:
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    model = {LABEL: LinearSVC, LABELS: lambda: OneVsRestClassifier(LinearSVC())}.get(kind, Ridge)()
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=1 if len(train) < _MANY else 2, sublinear_tf=True)
    pipeline = make_pipeline(words, model)
    first, second = ([text if isinstance(text, str) else " ".join(text) for text in texts] for texts in (train, test))
    with warnings.catch_warnings():  # of a class that all texts have, or none
        warnings.simplefilter("ignore")
        given = pipeline.fit(first, np.array(labels)).predict(second)
    return accuracy(kind, wanted, [np.atleast_1d(np.asarray(one, dtype=np.float64)) for one in given])

"""A dense model's own answers: what they lose, and how far another model's are from them, without labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from coda_models.labels import MULTI_LABEL, REGRESSION
from coda_models.model import CodaModel, CodaOutput

_LABEL, _LABELS, _NUMBERS, _EMBEDDING = "one label", "several labels", "numbers", "embedding"


def loss_of_own_answers(model: CodaModel, output: CodaOutput, mask: Tensor) -> Tensor:
    """Summed over texts, so that no text's gradient knows of another's.

    One label of several: -log p of the likeliest. Several labels at once: -log p of each decision. Regression: the
    output itself. Labels of tokens: the first of these, over valid tokens. Embeddings: their product with one random
    direction, the same for all texts.

    Args:
        mask: [batch, tokens] bool.

    Returns:
        A scalar, float64: in float32 an answer of probability 1 - 1e-8 would lose its gradient to rounding.
    """
    rows = rows_of_answers(model, output, mask)
    kind = _kind(model, rows)
    if kind == _EMBEDDING:
        return (rows @ _direction(rows)).sum()
    if kind == _LABELS:
        return F.softplus(-rows.abs()).sum()
    if kind == _NUMBERS:
        return rows.sum()
    return -F.log_softmax(rows, -1).amax(-1).sum()


def rows_of_answers(model: CodaModel, output: CodaOutput, mask: Tensor) -> Tensor:
    """Logits or embedding of each text or, where tokens are labelled, of each valid token.

    Args:
        mask: [batch, tokens] bool.

    Returns:
        [rows, outputs], float64.
    """
    given = output.sentence_embedding if output.logits is None else output.logits
    assert given is not None
    return (given[mask] if model.coda_config.task == "token-classification" else given).double()


def divergence(model: CodaModel, wanted: Tensor, given: Tensor) -> float:
    """How far answers are from the dense model's, mean over rows.

    One label of several: Kullback-Leibler divergence in nats. Several labels at once: its sum over the decisions.
    Regression: squared distance over the variance of the dense model's, mean over outputs. Embeddings: 1 - cosine.

    Args:
        wanted: of the dense model, as ``rows_of_answers`` gives them.
        given: of the other.
    """
    if _kind(model, wanted) == _NUMBERS:
        variance = wanted.var(0, unbiased=False)
        return float(((given - wanted).square() / torch.where(variance > 0, variance, 1.0)).mean())
    return float(distance(model, wanted, given))


def distance(model: CodaModel, wanted: Tensor, given: Tensor) -> Tensor:
    """``divergence`` to be learned from, a scalar: the squared distance of regression is over no variance, which a
    batch of a few texts does not tell. Arguments as there."""
    kind = _kind(model, wanted)
    if kind == _EMBEDDING:
        return (1 - F.cosine_similarity(wanted, given, dim=-1)).mean()
    if kind == _NUMBERS:
        return F.mse_loss(given, wanted)
    if kind == _LABELS:
        wanted, given = (torch.stack([torch.zeros_like(rows), rows], -1) for rows in (wanted, given))
    p, q = (F.log_softmax(rows, -1) for rows in (wanted, given))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def disagreement(model: CodaModel, wanted: Tensor, given: Tensor) -> float:
    """What of the agreement with the dense model is lost: the share of rows with another label or set of labels, 1 - R²
    of regression, 1 - cosine of embeddings; arguments as for ``divergence``."""
    kind = _kind(model, wanted)
    if kind == _LABEL:
        return float((wanted.argmax(-1) != given.argmax(-1)).double().mean())
    if kind == _LABELS:
        return float(((wanted > 0) != (given > 0)).any(-1).double().mean())
    return divergence(model, wanted, given)


def _kind(model: CodaModel, rows: Tensor) -> str:
    if model.head is None:
        return _EMBEDDING
    problem = getattr(model.hf_config, "problem_type", None)
    if problem == MULTI_LABEL:
        return _LABELS
    return _NUMBERS if problem == REGRESSION or rows.shape[-1] == 1 else _LABEL


def _direction(embedding: Tensor) -> Tensor:
    """[width], the same at every call."""
    drawn = torch.randn(embedding.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(embedding.device)

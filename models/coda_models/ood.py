"""Out-of-distribution scores (Cho et al. 2023) from the pooled hidden state and the logits; higher is further out.

All of it is float32, whatever the precision of the layers below.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("msp", "energy", "maxlogit", "cosine", "mahalanobis")
FITTED = ("cosine", "mahalanobis")  # on features; the others read logits alone


class FromLogits(nn.Module):
    """-log of the largest probability (msp), -logsumexp of the logits (energy), or -the largest logit (maxlogit)."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """[batch, width], [batch, labels] -> [batch]."""
        if self.method == "msp":
            return -F.log_softmax(logits, -1).amax(-1)
        return -torch.logsumexp(logits, -1) if self.method == "energy" else -logits.amax(-1)


class Cosine(nn.Module):
    """1 - cosine similarity of the nearest in-distribution example.

    Args:
        known: [texts, width].
    """

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known: Tensor
        self.register_buffer("known", F.normalize(known.float(), dim=-1).T.contiguous())  # [width, texts]

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """[batch, width] -> [batch]."""
        length = features.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        return 1 - (features / length @ self.known).amax(-1)


class Mahalanobis(nn.Module):
    """Squared Mahalanobis distance to the nearest class, all classes sharing one covariance (Lee et al. 2018).

    Args:
        centre: [width], subtracted first, so that no large numbers cancel.
        whiten: [width, width], whose product with its transpose is the inverse covariance.
        means: [classes, width], centred and whitened.
    """

    def __init__(self, centre: Tensor, whiten: Tensor, means: Tensor) -> None:
        super().__init__()
        self.centre: Tensor
        self.whiten: Tensor
        self.means: Tensor
        self.lengths: Tensor
        self.register_buffer("centre", centre.float())
        self.register_buffer("whiten", whiten.float().contiguous())
        self.register_buffer("means", means.float().T.contiguous())  # [width, classes]
        self.register_buffer("lengths", means.double().square().sum(-1).float())  # [classes]

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """[batch, width] -> [batch]."""
        white = (features - self.centre) @ self.whiten
        own = white.square().sum(-1, keepdim=True)
        return (own - 2 * white @ self.means + self.lengths).amin(-1)


class OodDetector(nn.Module):
    """A score and the threshold above which a text counts as out of distribution.

    Attributes:
        method: one of ``METHODS``.
        kept: the share of in-distribution data below the threshold.
    """

    def __init__(self, method: str, score: nn.Module, threshold: float, kept: float) -> None:
        super().__init__()
        self.method, self.kept = method, kept
        self.score = score
        self.limit: Tensor
        self.register_buffer("limit", torch.tensor([threshold], dtype=torch.float32))

    @property
    def threshold(self) -> float:
        """Above which an input counts as out of distribution."""
        return float(self.limit)

    def forward(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, width], [batch, labels] -> scores [batch], and bool [batch]."""
        score: Tensor = self.score(features, logits)
        return score, score > self.limit

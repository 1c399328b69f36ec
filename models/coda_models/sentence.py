"""From hidden states to a sentence embedding: pooling and the modules after it, as sentence-transformers computes them
(Reimers and Gurevych 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_models.errors import ConfigError
from coda_ops.errors import shown

POOLINGS = ("mean", "first", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
KINDS = ("Dense", "LayerNorm", "Normalize", "Truncate")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Identity,
        nn.Tanh,
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.ELU,
        nn.LeakyReLU,
        nn.Softplus,
        nn.Mish,
    )
}
_WIDEST = 1 << 20


@dataclass(frozen=True)
class SentenceModule:
    """A module after pooling.

    Attributes:
        kind: ``Dense``, ``LayerNorm``, ``Normalize`` to unit length, or ``Truncate`` to the first ``outputs`` values.
        inputs, outputs: widths; a LayerNorm's are equal, ``Normalize`` has none and ``Truncate`` no ``inputs``.
        bias: whether a Dense adds one.
        activation: of a Dense, one of ``ACTIVATIONS``.

    Raises:
        ConfigError: one sentence that names the field.
    """

    kind: str
    inputs: int = 0
    outputs: int = 0
    bias: bool = False
    activation: str = "Identity"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"module {self.kind!r} behind pooling is unknown: use one of {', '.join(KINDS)}")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"activation {self.activation!r} of a {self.kind} is unknown: use one of {known}")
        if not isinstance(self.bias, bool):
            raise ConfigError(f"bias {self.bias!r} of a {self.kind} is neither true nor false")
        for name in self._widths():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _WIDEST:
                raise ConfigError(f"{name} {shown(value)} of a {self.kind} is not a whole number from 1 to {_WIDEST}")

    def _widths(self) -> tuple[str, ...]:
        return {"Normalize": (), "Truncate": ("outputs",)}.get(self.kind, ("inputs", "outputs"))

    def width(self, width: int) -> int:
        """The width of what it makes of embeddings of some width.

        Raises:
            ConfigError: it takes another one.
        """
        if self.kind == "Normalize":
            return width
        if self.kind == "Truncate":
            return min(width, self.outputs)
        if self.inputs != width or (self.kind == "LayerNorm" and self.outputs != width):
            raise ConfigError(f"a {self.kind} behind pooling takes width {self.inputs} where embeddings have {width}")
        return self.outputs


class Dense(nn.Module):
    """A linear layer and its activation."""

    def __init__(self, about: SentenceModule) -> None:
        super().__init__()
        self.linear = nn.Linear(about.inputs, about.outputs, bias=about.bias)
        self.activation = ACTIVATIONS[about.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs] -> [batch, outputs]."""
        y: Tensor = self.activation(self.linear(x))
        return y


class LayerNorm(nn.Module):
    """Layer normalisation, its parameters where sentence-transformers keeps them."""

    def __init__(self, about: SentenceModule) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(about.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] -> the same shape."""
        y: Tensor = self.norm(x)
        return y


class Normalize(nn.Module):
    """Division by the Euclidean length."""

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] -> the same shape."""
        return F.normalize(x, dim=1)


class Truncate(nn.Module):
    """The first values of each embedding."""

    def __init__(self, about: SentenceModule) -> None:
        super().__init__()
        self.outputs = about.outputs

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width] -> [batch, outputs]."""
        return x[:, : self.outputs]


def build_modules(modules: Sequence[SentenceModule], width: int) -> nn.Sequential:
    """The modules of a configuration, untrained.

    Args:
        width: of what pooling gives.

    Raises:
        ConfigError: one takes another width than it is given.
    """
    made: dict[str, Any] = {"Dense": Dense, "LayerNorm": LayerNorm, "Truncate": Truncate}
    built = []
    for about in modules:
        width = about.width(width)
        built.append(Normalize() if about.kind == "Normalize" else made[about.kind](about))
    return nn.Sequential(*built)


def pool(x: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """What stands for each text; zeros for one without tokens.

    Args:
        x: [batch, tokens, width].
        mask: [batch, tokens] bool, wherever a tokenizer pads.
        pooling: one of ``POOLINGS``.

    Returns:
        [batch, width].
    """
    if pooling == "max":
        highest = x.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(1)
        return highest.masked_fill(~mask.any(1, keepdim=True), 0.0)
    weights = _weights(mask, pooling).unsqueeze(-1).to(x.dtype)
    weighted, total = (x * weights).sum(1), weights.sum(1).clamp(min=1)  # nothing stands for an empty text
    return weighted / (total.sqrt() if pooling == "mean_sqrt_len_tokens" else total)


def _weights(mask: Tensor, pooling: str) -> Tensor:
    """How much each token counts. [batch, tokens]"""
    if pooling == "weightedmean":  # by position in the batch, padding on the left included
        return mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    if pooling in ("first", "lasttoken"):
        place = mask.cumsum(1)
        return mask & (place == (1 if pooling == "first" else mask.sum(1, keepdim=True)))
    return mask

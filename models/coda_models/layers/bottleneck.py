"""Adapters inside a layer, at the end of its sublayers: serial ones (Houlsby et al. 2019, Pfeiffer et al. 2021) and
parallel ones (He et al. 2022), one or several in sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coda_ops.adapter import adapter

RESIDUALS = ("before", "added", "normed")


@dataclass(frozen=True)
class Placement:
    """How an adapter sits between a sublayer's output h, its input x and its norm.

    Attributes:
        parallel: it reads x and is added to h; a serial one reads what has become of h.
        joined: h + x is normed before a serial adapter reads it.
        closes: x is added and the norm applied behind it (of several adapters the last one's word counts).
        residual: what a serial adapter is added to: h as it came, h + x, or what it reads.
        residual_first: it is added before the adapter's own norm, not behind it.
    """

    parallel: bool = False
    joined: bool = False
    closes: bool = True
    residual: str = "before"
    residual_first: bool = False

    def __post_init__(self) -> None:
        if self.residual not in RESIDUALS:
            raise ValueError(f"residual {self.residual!r} is unknown: use one of {', '.join(RESIDUALS)}")


class Bottleneck(nn.Module):
    """One adapter: down, an activation, up, and norms of its own where it has some."""

    def __init__(
        self,
        down: nn.Linear,
        activation: Callable[[Tensor], Tensor],
        up: nn.Linear,
        placement: Placement,
        *,
        norm_before: nn.LayerNorm | None = None,
        norm_after: nn.LayerNorm | None = None,
    ) -> None:
        super().__init__()
        self.down, self.activation, self.up = down, activation, up
        self.norm_before, self.norm_after = norm_before, norm_after
        self.placement = placement

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        if self.norm_before is not None:
            x = self.norm_before(x)
        if isinstance(self.activation, nn.ReLU):
            y = adapter(x, self.down.weight.T, self.down.bias, self.up.weight.T, self.up.bias)
        else:
            y = self.up(self.activation(self.down(x)))
        if residual is not None and self.placement.residual_first:
            y = y + residual
        if self.norm_after is not None:
            y = self.norm_after(y)
        if residual is not None and not self.placement.residual_first:
            y = y + residual
        return y


class Bottlenecks(nn.Module):
    """Adapters in the place of a post-norm sublayer's ``norm(h + x)``, the first one first."""

    def __init__(self, adapters: Sequence[Bottleneck]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)

    @property
    def width(self) -> int:
        """Of all bottlenecks together."""
        return sum(int(one.down.out_features) for one in self._each())

    def _each(self) -> list[Bottleneck]:
        return [one for one in self.adapters if isinstance(one, Bottleneck)]

    def forward(self, hidden: Tensor, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """What the sublayer gives on, from its output ``hidden`` and its input x. [batch, tokens, width] each"""
        came = hidden
        for one in self._each():
            place = one.placement
            if place.parallel:
                hidden = one(x, None)
                continue
            joined = hidden + x if place.joined else hidden
            read = norm(joined) if place.joined else hidden
            hidden = one(read, {"before": hidden, "added": joined, "normed": read}[place.residual])
        last = self._each()[-1].placement
        if last.parallel:
            hidden = hidden + came
        return norm(hidden + x) if last.closes else hidden


def scaled(linear: nn.Linear, by: Tensor | float) -> nn.Linear:
    """A linear layer whose outputs are multiplied, all alike or each by its own factor. by: scalar or [outputs]"""
    factor = torch.as_tensor(by, dtype=linear.weight.dtype).reshape(-1)
    result = nn.Linear(linear.in_features, linear.out_features)
    with torch.no_grad():
        result.weight.copy_(linear.weight * factor.unsqueeze(1))
        result.bias.copy_(linear.bias * factor)
    return result

"""Adapters inside a layer, at the end of its sublayers: serial ones (Houlsby et al. 2019, Pfeiffer et al. 2021) and
parallel ones (He et al. 2022), one or several in sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.activations import get_activation

from coda_models.learned_parts import BottleneckForm
from coda_ops.adapter import adapter


class Bottleneck(nn.Module):
    """One adapter: down, an activation, up, and norms of its own where it has some; what it adds starts as zero.

    Args:
        width: of the layer.
        form: of the adapter.
    """

    def __init__(self, width: int, form: BottleneckForm) -> None:
        super().__init__()
        self.form = form
        self.down = nn.Linear(width, form.width)
        self.activation = activation_of(form.activation)
        self.up = nn.Linear(form.width, width)
        self.norm_before = nn.LayerNorm(width) if form.norm_before else None
        self.norm_after = nn.LayerNorm(width) if form.norm_after else None
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        if self.norm_before is not None:
            x = self.norm_before(x)
        if isinstance(self.activation, nn.ReLU):
            y = adapter(x, self.down.weight.T, self.down.bias, self.up.weight.T, self.up.bias)
        else:
            y = self.up(self.activation(self.down(x)))
        if residual is not None and self.form.residual_first:
            y = y + residual
        if self.norm_after is not None:
            y = self.norm_after(y)
        if residual is not None and not self.form.residual_first:
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
        return sum(one.form.width for one in self.each())

    def each(self) -> list[Bottleneck]:
        """The adapters, the first one first."""
        return [one for one in self.adapters if isinstance(one, Bottleneck)]

    def forward(self, hidden: Tensor, x: Tensor, norm: nn.Module) -> Tensor:
        """What the sublayer gives on, from its output ``hidden`` and its input x. [batch, tokens, width] each"""
        came = hidden
        for one in self.each():
            form = one.form
            if form.parallel:
                hidden = one(x, None)
                continue
            joined = hidden + x if form.joined else hidden
            read = norm(joined) if form.joined else hidden
            hidden = one(read, {"before": hidden, "added": joined, "normed": read}[form.residual])
        last = self.each()[-1].form
        if last.parallel:
            hidden = hidden + came
        return norm(hidden + x) if last.closes else hidden


def activation_of(name: str) -> nn.Module:
    """One of ``coda_models.learned_parts.ACTIVATIONS``."""
    module: nn.Module = nn.LeakyReLU() if name == "leakyrelu" else get_activation(name)
    return module


@torch.no_grad()
def copy_scaled(linear: nn.Linear, into: nn.Linear, by: Tensor | float) -> None:
    """Let a linear layer give what another one does, multiplied, all alike or each output by its own factor.

    Args:
        linear: of the same sizes, with a bias.
        into: what is changed.
        by: scalar or [outputs].
    """
    factor = torch.as_tensor(by, dtype=linear.weight.dtype).reshape(-1)
    into.weight.copy_(linear.weight * factor.unsqueeze(1))
    into.bias.copy_(linear.bias * factor)

"""The second half of a block: what each token goes through by itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class FeedForward(nn.Module, ABC):
    """[batch, tokens, width] -> the same shape. Its linear layers are its own children, where precisions find them."""

    @property
    @abstractmethod
    def inner(self) -> int:
        """f, where it takes 2 · width · f multiply-adds a token."""


class GatedFeedForward(FeedForward):
    """activation(a) · b → down, where a and b are the halves of what one product gives: GeGLU, SwiGLU (Shazeer 2020).

    Args:
        up: width → 2 · wide; down: wide → width.
        dropout: of what goes into ``down``.
    """

    def __init__(
        self, up: nn.Linear, activation: Callable[[Tensor], Tensor], down: nn.Linear, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up, self.activation, self.down = up, activation, down
        self.dropout = nn.Dropout(dropout)

    @property
    def inner(self) -> int:
        return (self.up.out_features + self.down.in_features) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        gate, value = self.up(x).chunk(2, -1)
        y: Tensor = self.down(self.dropout(self.activation(gate) * value))
        return y


class PlainFeedForward(FeedForward):
    """up → activation → down, made of a backbone's own modules."""

    def __init__(self, up: nn.Linear, activation: Callable[[Tensor], Tensor], down: nn.Linear) -> None:
        super().__init__()
        self.up, self.activation, self.down = up, activation, down

    @property
    def inner(self) -> int:
        return self.up.out_features

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y

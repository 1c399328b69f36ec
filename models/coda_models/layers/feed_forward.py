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

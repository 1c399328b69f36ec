"""Embeddings that read the mask."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class MaskedEmbeddings(nn.Module, ABC):
    """Embeddings of inputs and their mask, for families that clear what padding is embedded as, or shorten both."""

    @abstractmethod
    def forward(self, mask: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """States of tokens and which of these are valid.

        Args:
            mask: [batch, length] bool, where inputs are valid.
            inputs: the others of the signature, by name.

        Returns:
            [batch, tokens, width] and [batch, tokens] bool.
        """

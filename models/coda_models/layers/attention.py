"""Multi-head attention over gathered tokens, which know where they stood."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coda_models.layers.rotary import Rotary


class RelativeBias(nn.Module):
    """A learned bias by bucketed distance (T5, MPNet), looked up at original positions."""

    def __init__(self, embedding: nn.Embedding, bucket: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = embedding
        self._bucket = bucket

    def table(self, tokens: int) -> Tensor:
        """The bias at every distance from -(tokens - 1) to tokens - 1. [2 * tokens - 1, heads]"""
        distances = torch.arange(1 - tokens, tokens, device=self.embedding.weight.device)
        by_distance: Tensor = self.embedding(self._bucket(distances))
        return by_distance


def bias_between(table: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Bias of each query position for each key position.

    Args:
        table: [2 * tokens - 1, heads], from ``RelativeBias.table``.
        queries: [batch, q] positions; keys: [batch, k] positions.

    Returns:
        [batch, heads, q, k].
    """
    middle = (table.shape[0] - 1) // 2
    distance = keys.unsqueeze(1) - queries.unsqueeze(2) + middle  # [batch, q, k]
    return table[distance].permute(0, 3, 1, 2)


def mask_bias(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for valid keys, the lowest finite number for others, to be added to logits.

    Finite, so that a row without any valid key stays finite too.

    Args:
        valid: [batch, keys], or [batch, q, keys] where it depends on the query.

    Returns:
        [batch, 1, 1 or q, keys].
    """
    zero = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    bias = zero.masked_fill(~valid, torch.finfo(dtype).min).unsqueeze(1)
    return bias if valid.dim() == 3 else bias.unsqueeze(1)


class Places(NamedTuple):
    """Where tokens that attend, and those that are attended to, stand in their sequence: attention sees gathered ones.

    Attributes:
        queries: original positions, [batch or 1, q].
        keys: original positions, [batch or 1, k].
        valid: [batch, k] bool, keys that may be attended to.
        table: [2 * tokens - 1, heads], from ``RelativeBias.table``, of the backbones that share one.
        key_bias: added to every logit of a key, [batch, 1, 1, k].
    """

    queries: Tensor
    keys: Tensor
    valid: Tensor
    table: Tensor | None = None
    key_bias: Tensor | None = None


class LogitBias(nn.Module):
    """What is added to attention's logits: a mask of keys and, where there is one, a bias by distance.

    A module of its own, so that its nodes of an exported graph are told from attention's: they mask what is routed.

    Args:
        window: how many positions before and behind its own a query sees; all of them by default.
    """

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window

    def forward(self, places: Places, dtype: torch.dtype) -> Tensor:
        """[batch, heads or 1, q or 1, k]."""
        bias = mask_bias(places.valid if self.window is None else self._near(places, self.window), dtype)
        if places.table is not None:
            bias = bias + bias_between(places.table, places.queries, places.keys)
        return bias if places.key_bias is None else bias + places.key_bias

    @staticmethod
    def _near(places: Places, window: int) -> Tensor:
        """Valid keys in each query's window: one mask, since the sum of two would leave the finite. [batch, q, k]"""
        distance = places.queries.unsqueeze(2) - places.keys.unsqueeze(1)  # [batch or 1, q, k]
        return places.valid.unsqueeze(1) & (distance.abs() <= window)


class KeysValues(NamedTuple):
    """Of the tokens that are attended to, where they are more than projections of those."""

    keys: Tensor  # [batch, k, inner]
    values: Tensor  # [batch, k, inner]


class Attention(nn.Module):
    """Scaled dot-product attention made of a backbone's own projections, with biases or without.

    Args:
        query, key, value: width → inner, which is a multiple of the heads; out: inner → width.
        scale: of the logits, by default 1 / √(inner / heads).
        rotary: turns queries and keys, but no prefix, which stands nowhere.
        window: as of ``LogitBias``.
    """

    def __init__(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        heads: int,
        dropout: float,
        *,
        scale: float | None = None,
        rotary: Rotary | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.heads = heads
        self.dropout = dropout
        self.scale = scale
        self.rotary = rotary
        self.logit_bias = LogitBias(window)
        self.prefix_key: nn.Parameter | None
        self.prefix_value: nn.Parameter | None
        self.register_parameter("prefix_key", None)
        self.register_parameter("prefix_value", None)

    def add_prefix(self, tokens: int) -> None:
        """Let every query attend to learned keys and values as well, [tokens, inner] each, zeros at first."""
        self.prefix_key, self.prefix_value = (nn.Parameter(torch.zeros(tokens, self.inner)) for _ in range(2))

    @torch.no_grad()
    def fill_prefix(self, key: Tensor, value: Tensor) -> None:
        """Give the learned keys and values their values. [heads, tokens, head width] each"""
        for own, given in ((self.prefix_key, key), (self.prefix_value, value)):
            assert own is not None
            own.copy_(given.transpose(0, 1).flatten(1))

    @property
    def inner(self) -> int:
        """Width of keys, of values and of queries, all heads side by side."""
        return self.key.out_features

    @property
    def prefix(self) -> int:
        """Learned tokens that every query attends to as well."""
        return 0 if self.prefix_key is None else len(self.prefix_key)

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)  # [batch, heads, tokens, head]

    def project(self, memory: Tensor) -> KeysValues:
        """The keys and values of tokens. memory: [batch, k, width]"""
        return KeysValues(self.key(memory), self.value(memory))

    def forward(self, x: Tensor, memory: Tensor | KeysValues, places: Places) -> Tensor:
        """Attend from x to memory.

        Args:
            x: [batch, q, width]; memory: [batch, k, width], or what stands for it.
            places: of x as queries and of memory as keys.

        Returns:
            [batch, q, width], after the output projection.
        """
        bias = self.logit_bias(places, x.dtype)
        key, value = self.project(memory) if isinstance(memory, Tensor) else memory
        if self.rotary is not None:
            key = self.rotary(key, places.keys, self.heads)
        if self.prefix_key is not None and self.prefix_value is not None:
            key = torch.cat((self.prefix_key.expand(len(x), -1, -1), key), 1)
            value = torch.cat((self.prefix_value.expand(len(x), -1, -1), value), 1)
            bias = F.pad(bias, (len(self.prefix_key), 0))
        query = self.query(x)
        if self.rotary is not None:
            query = self.rotary(query, places.queries, self.heads)
        mixed = F.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected

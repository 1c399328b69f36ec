"""The routed layer and its two forms, pre-norm and post-norm."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from coda_models.layers.adapter import Adapter
from coda_models.layers.attention import Attention, bias_between, mask_bias
from coda_models.layers.bottleneck import Bottlenecks
from coda_models.layers.router import Router
from coda_ops.capacity import slot_count
from coda_ops.put_tokens import put_tokens
from coda_ops.route import Schedule, route
from coda_ops.take_tokens import take_tokens


class FeedForward(nn.Module):
    """up → activation → down, made of a backbone's own modules."""

    def __init__(self, up: nn.Linear, activation: Callable[[Tensor], Tensor], down: nn.Linear) -> None:
        super().__init__()
        self.up, self.activation, self.down = up, activation, down

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class Block(nn.Module, ABC):
    """The heavy, frozen part of a layer: attention and feed-forward with their norms."""

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, norm1: nn.LayerNorm, norm2: nn.LayerNorm, dropout: float
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = norm1, norm2
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """What router, adapter and attention read: the normed input (pre-norm) or x itself (post-norm)."""

    @abstractmethod
    def output(self, x: Tensor, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """The layer's output for the tokens x.

        Args:
            x: [batch, q, width], the residual stream.
            query: [batch, q, width], ``read`` of the same tokens.
            memory: [batch, k, width], ``read`` of the tokens attended to.
            bias: added to the attention logits, [batch or 1, heads or 1, q or 1, k].
        """

    @property
    def light_width(self) -> int:
        """Of the bottlenecks inside it."""
        return 0

    @abstractmethod
    def update(self, x: Tensor, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """``output - x``: what routing gates."""


@final
class PreNormBlock(Block):
    """x + Attention(LN1 x), then + FFN(LN2 …): T5, ViT, Whisper, RoBERTa-PreLayerNorm."""

    def read(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm1(x)
        return normed

    def output(self, x: Tensor, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        return x + self.update(x, query, memory, bias)

    def update(self, x: Tensor, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        attended: Tensor = self.dropout(self.attention(query, memory, bias))
        fed: Tensor = self.dropout(self.feed_forward(self.norm2(x + attended)))
        return attended + fed


@final
class PostNormBlock(Block):
    """LN1(x + Attention x), then LN2(… + FFN …): BERT, RoBERTa, DistilBERT, MPNet."""

    def read(self, x: Tensor) -> Tensor:
        return x

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, norm1: nn.LayerNorm, norm2: nn.LayerNorm, dropout: float
    ) -> None:
        super().__init__(attention, feed_forward, norm1, norm2, dropout)
        self.after_attention: Bottlenecks | None = None
        self.after_feed_forward: Bottlenecks | None = None

    def output(self, x: Tensor, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        attended = self._closed(self.attention(query, memory, bias), x, self.norm1, self.after_attention)
        return self._closed(self.feed_forward(attended), attended, self.norm2, self.after_feed_forward)

    def _closed(self, hidden: Tensor, x: Tensor, norm: nn.LayerNorm, adapters: Bottlenecks | None) -> Tensor:
        hidden = self.dropout(hidden)
        result: Tensor = norm(x + hidden) if adapters is None else adapters(hidden, x, norm)
        return result

    @property
    def light_width(self) -> int:
        return sum(0 if one is None else one.width for one in (self.after_attention, self.after_feed_forward))

    def update(self, x: Tensor, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        return self.output(x, query, memory, bias) - x


class Routing(NamedTuple):
    """What one layer's router decided."""

    scores: Tensor  # [batch, tokens]
    indices: Tensor  # [batch, K]
    gates: Tensor  # [batch, K]
    used: Tensor  # [batch, K]


class CodaLayer(nn.Module):
    """A heavy block with a router and an adapter beside it (Lei et al. 2023, section 4).

    Args:
        block: the frozen layer.
        adapter: the light branch for every token, or ``None`` for a plain layer.
        router: ``None`` for a layer that never routes.
        reduction: r of this layer; 1 sends every token through the block without gathering, the dense adapter.
        attention: ``k_to_k`` or ``k_to_all``.
    """

    def __init__(
        self,
        block: Block,
        adapter: Adapter | None,
        router: Router | None,
        reduction: Fraction,
        attention: str,
        schedule: Schedule,
    ) -> None:
        super().__init__()
        self.block, self.adapter, self.router = block, adapter, router
        self.reduction = reduction
        self.attention = attention
        self.schedule = schedule

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        table: Tensor | None = None,
        decision: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """One layer.

        Args:
            x: [batch, tokens, width].
            mask: [batch, tokens] bool, true for valid tokens.
            table: relative position bias by distance, of the backbones that have one.
            decision: indices, gates and used slots to take instead of the router's own, for replaying another
                implementation's decisions.

        Returns:
            The output, of x's shape, and the routing, ``None`` where the layer is dense.
        """
        read = self.block.read(x)
        if self.router is None or self.reduction == 1:
            positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)  # [1, tokens]
            y = self.block.output(x, read, read, _logit_bias(mask, positions, positions, table, x.dtype))
            return (y if self.adapter is None else y + self.adapter(read)), None

        base = x if self.adapter is None else x + self.adapter(read)
        routing = self._route(self.router(read), mask, decision)
        query = take_tokens(read, routing.indices)  # [batch, K, width]
        taken = query if read is x else take_tokens(x, routing.indices)
        if self.attention == "k_to_k":
            memory, valid, keys = query, routing.used, routing.indices
        else:
            memory, valid = read, mask
            keys = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        bias = _logit_bias(valid, routing.indices, keys, table, x.dtype)
        update = self.block.update(taken, query, memory, bias)
        return put_tokens(base, routing.indices, routing.gates, update), routing

    def _route(self, scores: Tensor, mask: Tensor, decision: tuple[Tensor, Tensor, Tensor] | None) -> Routing:
        if decision is None:
            return Routing(scores, *route(scores, mask, self.reduction, self.schedule))
        indices, gates, used = decision
        return Routing(scores, indices, gates.to(scores.dtype), used)

    def slots(self, tokens: int) -> int:
        """K for a padded length."""
        return slot_count(tokens, self.reduction)


def _logit_bias(valid: Tensor, queries: Tensor, keys: Tensor, table: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Mask and, where there is one, relative position bias. [batch, heads or 1, q or 1, k]"""
    masked = mask_bias(valid, dtype)
    return masked if table is None else masked + bias_between(table, queries, keys)

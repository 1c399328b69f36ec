"""The routed layer and its two forms, pre-norm and post-norm."""

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from coda_models.layers.adapter import Adapter
from coda_models.layers.attention import Attention, KeysValues, Places
from coda_models.layers.bottleneck import Bottlenecks
from coda_models.layers.feed_forward import FeedForward
from coda_models.layers.low_rank import LowRank
from coda_models.layers.router import Router
from coda_ops.capacity import slot_count
from coda_ops.put_tokens import put_tokens
from coda_ops.route import Schedule, route
from coda_ops.set_tokens import set_tokens
from coda_ops.take_tokens import take_tokens

Memory = Tensor | KeysValues  # tokens that are attended to, or their keys and values


class Block(nn.Module, ABC):
    """The heavy, frozen part of a layer: attention and feed-forward with their norms, of whatever type these are."""

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, norm1: nn.Module, norm2: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = norm1, norm2
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """What router, adapter and attention read: the normed input (pre-norm) or x itself (post-norm)."""

    @abstractmethod
    def output(self, x: Tensor, query: Tensor, memory: Memory, places: Places) -> Tensor:
        """The layer's output for the tokens x.

        Args:
            x: [batch, q, width], the residual stream.
            query: [batch, q, width], ``read`` of the same tokens.
            memory: [batch, k, width], ``read`` of the tokens attended to, or their keys and values.
            places: of both in their sequence.
        """

    @property
    def norms(self) -> list[nn.Module]:
        """Its norms, which are trained with adapters."""
        return [self.norm1, self.norm2]

    @property
    def light_width(self) -> int:
        """Of the bottlenecks inside it."""
        return 0

    @abstractmethod
    def update(self, x: Tensor, query: Tensor, memory: Memory, places: Places) -> Tensor:
        """``output - x``: what routing gates."""


@final
class PreNormBlock(Block):
    """x + Attention(LN1 x), then + FFN(LN2 …): T5, ViT, Whisper, RoBERTa-PreLayerNorm, ModernBERT.

    Args:
        dropout: of what attention and feed-forward give.
        drops_inside: whether the feed-forward has a dropout of its own inside, and none behind it.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norm1: nn.Module,
        norm2: nn.Module,
        dropout: float,
        *,
        drops_inside: bool = False,
    ) -> None:
        super().__init__(attention, feed_forward, norm1, norm2, dropout)
        self._drops_inside = drops_inside

    def read(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm1(x)
        return normed

    def output(self, x: Tensor, query: Tensor, memory: Memory, places: Places) -> Tensor:
        return x + self.update(x, query, memory, places)

    def update(self, x: Tensor, query: Tensor, memory: Memory, places: Places) -> Tensor:
        attended: Tensor = self.dropout(self.attention(query, memory, places))
        fed: Tensor = self.feed_forward(self.norm2(x + attended))
        return attended + (fed if self._drops_inside else self.dropout(fed))


@final
class PostNormBlock(Block):
    """LN1(x + Attention x), then LN2(… + FFN …): BERT, RoBERTa, DistilBERT, MPNet."""

    def read(self, x: Tensor) -> Tensor:
        return x

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, norm1: nn.Module, norm2: nn.Module, dropout: float
    ) -> None:
        super().__init__(attention, feed_forward, norm1, norm2, dropout)
        self.after_attention: Bottlenecks | None = None
        self.after_feed_forward: Bottlenecks | None = None

    def output(self, x: Tensor, query: Tensor, memory: Memory, places: Places) -> Tensor:
        attended = self._closed(self.attention(query, memory, places), x, self.norm1, self.after_attention)
        return self._closed(self.feed_forward(attended), attended, self.norm2, self.after_feed_forward)

    def _closed(self, hidden: Tensor, x: Tensor, norm: nn.Module, adapters: Bottlenecks | None) -> Tensor:
        hidden = self.dropout(hidden)
        result: Tensor = norm(x + hidden) if adapters is None else adapters(hidden, x, norm)
        return result

    @property
    def light_width(self) -> int:
        return sum(0 if one is None else one.width for one in (self.after_attention, self.after_feed_forward))

    def update(self, x: Tensor, query: Tensor, memory: Memory, places: Places) -> Tensor:
        return self.output(x, query, memory, places) - x


class Routing(NamedTuple):
    """What one layer's router decided."""

    scores: Tensor  # [batch, tokens]
    indices: Tensor  # [batch, K]
    gates: Tensor  # [batch, K]
    used: Tensor  # [batch, K]


class CodaLayer(nn.Module):
    """A heavy block with a router, and what every token goes through beside it.

    That is an adapter (Lei et al. 2023, section 4), or a stand-in, for what the tokens that are not routed miss:

        with an adapter     y = x + adapter(x) + g · (block(x) - x)
        with a stand-in     y = (1 - g) · (x + stand_in(x)) + g · (block(x) + adapter(x))

    g is 0 for tokens that are not routed. In the second form an adapter, where there is one, is a part of what is
    routed. A pre-norm layer's adapter and stand-in read what its router reads.

    Args:
        block: the frozen layer.
        adapter: a light branch, or ``None``.
        router: ``None`` for a layer that never routes.
        reduction: r of this layer; 1 sends every token through the block without gathering, the dense model.
        attention: ``k_to_k`` or ``k_to_all``.
        stand_in: width → width, for the tokens that are not routed; ``None`` for the form with an adapter.
        key_value: width → keys and values, side by side, of the tokens that are not routed in k_to_all; ``None`` for
            the block's own. Those of routed tokens are the block's own in any case.
    """

    def __init__(
        self,
        block: Block,
        adapter: Adapter | None,
        router: Router | None,
        reduction: Fraction,
        attention: str,
        schedule: Schedule,
        *,
        stand_in: LowRank | None = None,
        key_value: LowRank | None = None,
    ) -> None:
        super().__init__()
        self.block, self.adapter, self.router = block, adapter, router
        self.stand_in, self.key_value = stand_in, key_value
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
        if self.router is None or self.reduction == 1:
            return self.dense(x, mask, table), None

        read = self.block.read(x)
        beside = self.adapter if self.stand_in is None else self.stand_in
        base = x if beside is None else x + beside(read)  # before it is routed, so that passes fuse it with the router
        routing = self.decide(read, mask, decision)
        query = take_tokens(read, routing.indices)  # [batch, K, width]
        taken = query if read is x else take_tokens(x, routing.indices)
        memory: Memory
        if self.attention == "k_to_k":
            memory, valid, keys = query, routing.used, routing.indices
        else:
            memory, valid = self._memory(read, query, routing), mask
            keys = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        places = Places(routing.indices, keys, valid, table)
        if self.stand_in is None:
            update = self.block.update(taken, query, memory, places)
        else:
            made = self.block.output(taken, query, memory, places)
            made = made if self.adapter is None else made + self.adapter(query)
            update = made - take_tokens(base, routing.indices)
        return put_tokens(base, routing.indices, routing.gates, update), routing

    def dense(self, x: Tensor, mask: Tensor, table: Tensor | None = None, key_bias: Tensor | None = None) -> Tensor:
        """The layer at r = 1, as ``forward`` takes it.

        Args:
            key_bias: added to every logit of a key, [batch, 1, 1, tokens]; zeros tell by their gradient what each token
                is worth as a key.
        """
        read = self.block.read(x)
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)  # [1, tokens]
        y = self.block.output(x, read, read, Places(positions, positions, mask, table, key_bias))
        return y if self.adapter is None else y + self.adapter(read)

    def _memory(self, read: Tensor, query: Tensor, routing: Routing) -> Memory:
        """What all tokens are as keys and values, in k_to_all."""
        if self.key_value is None:
            return read
        exact = torch.cat(self.block.attention.project(query), -1)  # [batch, K, 2 * inner]
        both = set_tokens(self.key_value(read), routing.indices, routing.used, exact)
        return KeysValues(*both.chunk(2, -1))

    def decide(self, read: Tensor, mask: Tensor, decision: tuple[Tensor, Tensor, Tensor] | None = None) -> Routing:
        """What the router decides where there is one to decide.

        Args:
            read: [batch, tokens, width], what the router reads.
            mask, decision: as for ``forward``.
        """
        assert self.router is not None
        scores = self.router(read)
        if decision is None:
            return Routing(scores, *route(scores, mask, self.reduction, self.schedule))
        indices, gates, used = decision
        return Routing(scores, indices, gates.to(scores.dtype), used)

    def slots(self, tokens: int) -> int:
        """K for a padded length."""
        return slot_count(tokens, self.reduction)

"""Fuse attention of some tokens to all of them with the projections that its keys and values come from."""

from dataclasses import dataclass

import onnx_ir as ir

from coda_compile.passes.fusion import NodeFusion
from coda_compile.passes.outcome import Declined, Fused, NotHere, Outcome
from coda_compile.passes.projections import (
    Projection,
    has_more,
    heads_and_scale,
    key_bias,
    pack,
    product,
    projection,
    why_apart,
)
from coda_compile.passes.values import array_of, attention_bias, producer, replace
from coda_ops import DOMAIN, RUNTIME_DOMAIN


@dataclass(frozen=True)
class _Scatter:
    """Where keys and values of routed tokens take the places of thin ones.

    Attributes:
        node: ``SetTokens``.
        exact: keys and values of the routed tokens.
        nodes: between those and the attention, the last first.
    """

    node: ir.Node
    exact: tuple[ir.Value | None, ...]
    nodes: tuple[ir.Node, ...]


class FuseKToAll(NodeFusion):
    """``MultiHeadAttention`` of some tokens to all → ``CrossAttention``; of thin keys and values ``KToAllAttention``.

    onnxruntime's operator copies queries, keys and values head by head, and its bias query by query. Ours read keys and
    values where one linear layer with packed weights left them, and those of routed tokens beside their queries.
    """

    anchor = (RUNTIME_DOMAIN, "MultiHeadAttention")

    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Fuse one attention."""
        if has_more(node):
            return Declined("it has a bias, a padding mask or a cache of its own", node)
        scatter = _scatter(node)
        query, *others = node.inputs[:3]
        values = others if scatter is None else (query, *scatter.exact)
        parts = [part for part in map(projection, values) if part is not None]
        if len(parts) != len(values):
            return Declined("a projection is no linear layer that it alone reads", node)
        if scatter is None and (own := projection(query)) is not None and own.x is parts[0].x:
            return NotHere()
        reason = _why_apart(parts)
        bias = key_bias(node) or attention_bias(node)
        if reason is not None or bias is None:
            return Declined(reason or "nothing is added to its scores", node)
        packed = pack(graph, parts)
        linear = product(parts[0], packed)
        rows, attributes = linear[-1].outputs[0], heads_and_scale(node, array_of(packed[-1]).size // len(parts))
        if scatter is None:
            new = ir.node("CrossAttention", [query, rows, bias], attributes, domain=DOMAIN)
            between: tuple[ir.Node, ...] = ()
        else:
            new = ir.node("KToAllAttention", [rows, *scatter.node.inputs[:3], bias], attributes, domain=DOMAIN)
            between = scatter.nodes
        replace(graph, node, [node, *between, *(old for part in parts for old in part.nodes)], [*linear, new])
        return Fused()


def _why_apart(parts: list[Projection]) -> str | None:
    """Why projections cannot be one linear layer; ``None`` where they can."""
    if any(part.x is not parts[0].x for part in parts):
        return "projections that belong together read different tokens"
    if len({array_of(part.constants[-1]).size for part in parts}) != 1:
        return "its values are of another width than its keys"
    return why_apart(parts)


def _scatter(attention: ir.Node) -> _Scatter | None:
    """What makes keys and values of thin and exact ones; ``None`` where nothing does."""
    key, value = attention.inputs[1:3]
    split = producer(key, "Split")
    if split is None or producer(value, "Split") is not split or [*split.outputs] != [key, value]:
        return None
    halves = len(split.inputs) == 1 and split.attributes.get_int("axis", 0) in (-1, 2)
    scatter = producer(split.inputs[0], "SetTokens", domain=DOMAIN)
    exact = None if scatter is None else producer(scatter.inputs[3], "Concat")
    if not halves or scatter is None or exact is None or exact.attributes.get_int("axis", 0) not in (-1, 2):
        return None
    return _Scatter(scatter, tuple(exact.inputs), (split, scatter, exact)) if len(exact.inputs) == 2 else None

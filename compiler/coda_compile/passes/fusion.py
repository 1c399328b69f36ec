"""Base of fusions: they attempt every place, and count the outcomes.

``fuse_attention`` calls the rules of onnxscript's rewriter. The others match by hand: a rewrite rule finds a place or
says nothing, and here most reasons to decline lie in the pattern itself (a sum that others read too, a weight that is
no constant). Its sets of rules also rename values and tag every node with the rule's name.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from coda_compile.passes.outcome import Declined, Fused, Outcome


@dataclass
class FusionResult(ir.passes.PassResult):
    """What a fusion did.

    Attributes:
        outcomes: of every attempt, in order.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def fused(self) -> int:
        """How many places were rewritten."""
        return sum(isinstance(outcome, Fused) for outcome in self.outcomes)

    @property
    def declined(self) -> dict[str, int]:
        """How many places were left as they were, by reason."""
        return dict(Counter(outcome.reason for outcome in self.outcomes if isinstance(outcome, Declined)))


class Fusion(ir.passes.InPlacePass):
    """A pass that rewrites places one by one. It keeps nothing between runs, so that one object serves any model."""

    def call(self, model: ir.Model) -> FusionResult:
        """Attempt every place."""
        outcomes = tuple(self.attempts(model))
        return FusionResult(model, any(isinstance(outcome, Fused) for outcome in outcomes), outcomes)

    @abstractmethod
    def attempts(self, model: ir.Model) -> Iterator[Outcome]:
        """Rewrite what fits, and yield what came of each place."""


class NodeFusion(Fusion):
    """A fusion whose places are the nodes of one operator.

    Attributes:
        anchor: domain and name of that operator.
    """

    anchor: ClassVar[tuple[str, str]]

    def attempts(self, model: ir.Model) -> Iterator[Outcome]:
        """Attempt every node that was there at first and still is."""
        for node in list(model.graph):
            if node.graph is not None and (node.domain, node.op_type) == self.anchor:
                yield self.attempt(model.graph, node)

    @abstractmethod
    def attempt(self, graph: ir.Graph, node: ir.Node) -> Outcome:
        """Match the pattern that ends at a node, check it and rewrite it; the graph changes only where it is fused."""

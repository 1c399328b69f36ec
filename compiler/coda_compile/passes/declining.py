"""What our fusions share: saying why they declined."""

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir


class Declining(ir.passes.InPlacePass):
    """A pass that counts, by reason, the places that it could have changed and did not.

    Attributes:
        declined: of the last run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.declined: Counter[str] = Counter()

    def fuse_each(
        self, model: ir.Model, domain: str, op_type: str, fuse: Callable[[ir.Graph, ir.Node], str | None]
    ) -> ir.passes.PassResult:
        """Try every node of an operator.

        Args:
            fuse: fuses one, and returns why not, or ``None``.
        """
        self.declined.clear()
        modified = False
        for node in list(model.graph):
            if (node.domain, node.op_type) == (domain, op_type):
                reason = fuse(model.graph, node)
                modified |= reason is None
                self.declined.update([reason] if reason else ())
        return ir.passes.PassResult(model, modified)

"""The outcome of one attempt to rewrite a place of a graph, as a type, because ``None`` could mean two of them."""

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir


@dataclass(frozen=True)
class Fused:
    """The pattern was here, its checks held, and it was rewritten."""


@dataclass(frozen=True)
class Declined:
    """The pattern was here, a check failed, and the graph is as it was.

    Attributes:
        reason: a clause for people without names or numbers, so that the same cause counts as one.
        value: where the check failed, with its name and shape; a node where no single value is to blame.
    """

    reason: str
    value: ir.Value | ir.Node | None = None

    def __str__(self) -> str:
        return self.reason if self.value is None else f"{self.reason}: {self.value}"


@dataclass(frozen=True)
class NotHere:
    """There was nothing to rewrite, or it has been rewritten before."""


Outcome: TypeAlias = Fused | Declined | NotHere

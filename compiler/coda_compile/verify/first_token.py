"""Routing decisions that send the first token through every layer.

Where a head reads the first token alone, attention in the last layer matters only if that token is routed there. No
choice of inputs guarantees that, because routers may skip it. So verification also runs once with given decisions.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coda_targets.routing import Decision


def through_first(decisions: Sequence[Decision], mask: NDArray[np.bool_]) -> list[Decision]:
    """The same decisions with the first token in the place of the first that was selected, and every gate open.

    Args:
        mask: [batch, tokens], the tokens that are no padding; an example whose first is padding keeps its selection.
    """
    return [_through_first(decision, mask) for decision in decisions]


def _through_first(decision: Decision, mask: NDArray[np.bool_]) -> Decision:
    indices = decision.indices.copy()
    for row, valid in zip(indices, mask, strict=True):
        if valid[0] and row[0] != 0:  # selections are sorted, so it stands there or is not selected
            row[row == 0] = row[0]
            row[0] = 0
    return replace(decision, indices=indices, gates=decision.used.astype(np.float32))


def selecting(layer: int, selected: Sequence[Sequence[int]], slots: int, tokens: int) -> Decision:
    """A decision of which no more is known than what it selects.

    Args:
        selected: for each example positions, ascending, no more than there are slots.
    """
    rows = [[*row, *(i for i in range(tokens) if i not in row)][:slots] for row in selected]
    used = np.arange(slots) < np.array([len(row) for row in selected])[:, None]
    scores = np.zeros((len(rows), tokens), np.float32)
    return Decision(layer, scores, np.array(rows, np.int64), used.astype(np.float32), used)

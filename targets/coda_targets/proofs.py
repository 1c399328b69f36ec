"""What was shown of a compiled model, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

PARITY, PLACEMENT, BUILD = "parity", "placement", "build"


@dataclass(frozen=True)
class ProofInfo:
    """What was shown of a variant when it was compiled.

    Attributes:
        what: ``PARITY`` with the model that it was compiled from, ``PLACEMENT`` of every node where it belongs, or
            ``BUILD`` of what its runtime makes of it.
        where: the execution provider and its device, or the devices that were built for.
    """

    what: str
    where: str


def ran_on(proofs: Sequence[ProofInfo], providers: Sequence[str]) -> bool:
    """Whether parity was shown on the first of some execution providers; also where nobody says, or there is none."""
    shown = [proof.where.split(" ")[0] for proof in proofs if proof.what == PARITY]
    return not shown or not providers or providers[0] in shown

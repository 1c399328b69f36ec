"""What our fusions share: saying why they declined."""

from collections import Counter

import onnx_ir as ir


class Declining(ir.passes.InPlacePass):
    """A pass that counts, by reason, the places that it could have changed and did not.

    Attributes:
        declined: of the last run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.declined: Counter[str] = Counter()

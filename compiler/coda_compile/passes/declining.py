"""What our fusions share: the domain that they fuse into, and saying why they declined."""

from collections import Counter

import onnx_ir as ir

RUNTIME_DOMAIN = "com.microsoft"  # of onnxruntime's own operators: in every build of it, unknown to other runtimes


class Declining(ir.passes.InPlacePass):
    """A pass that counts, by reason, the places that it could have changed and did not.

    Attributes:
        declined: of the last run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.declined: Counter[str] = Counter()

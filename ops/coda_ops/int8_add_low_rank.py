"""``ai.coda::Int8AddLowRank``: two int8 linear layers, nothing between them, and the residual sum behind, fused.

``Int8RouterLowRank`` scores the tokens for the router beside it as well, while they are in the cache. Passes make both,
so they have no torch operators.
"""

import onnx

from coda_ops.domain import schema
from coda_ops.int8_add_adapter import INPUTS, OUTPUTS, ROUTER, SCORES, fused

SCHEMA = schema("Int8AddLowRank", "y = residual + Int8Linear(Int8Linear(x)).", INPUTS, OUTPUTS)
ROUTER_SCHEMA = schema(
    "Int8RouterLowRank",
    "y = residual + Int8Linear(Int8Linear(x)), scores = x · router.",
    [*INPUTS, ROUTER],
    [*OUTPUTS, SCORES],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return fused(SCHEMA, "Identity")


def router_body() -> onnx.FunctionProto:
    """That of Int8RouterLowRank."""
    return fused(ROUTER_SCHEMA, "Identity")

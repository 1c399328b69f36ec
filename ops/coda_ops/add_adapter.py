"""``ai.coda::AddAdapter`` and ``AddSwishAdapter``: a bottleneck and the residual sum behind it, fused.

Passes make them, so they have no torch operators.
"""

import onnx

from coda_ops.adapter import INPUTS
from coda_ops.domain import formal, function, schema

_ALL_INPUTS = [formal("residual", "T", "[..., width]"), *INPUTS]
_OUTPUTS = [formal("y", "T", "[..., width]")]
SCHEMA = schema("AddAdapter", "y = residual + (relu(x · down + down_bias) · up + up_bias).", _ALL_INPUTS, _OUTPUTS)
SWISH_SCHEMA = schema(
    "AddSwishAdapter", "y = residual + (swish(x · down + down_bias) · up + up_bias).", _ALL_INPUTS, _OUTPUTS
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return _body("AddAdapter", "hidden = Relu(shifted)")


def swish_body() -> onnx.FunctionProto:
    """That of AddSwishAdapter."""
    return _body("AddSwishAdapter", "share = Sigmoid(shifted)\nhidden = Mul(shifted, share)")


def _body(operator: str, activation: str) -> onnx.FunctionProto:
    """The function body with the statements that make ``hidden`` of ``shifted``."""
    return function(
        f"{operator} (residual, x, down, down_bias, up, up_bias) => (y)",
        f"""
        lowered = MatMul(x, down)
        shifted = Add(lowered, down_bias)
        {activation}
        raised = MatMul(hidden, up)
        made = Add(raised, up_bias)
        y = Add(residual, made)""",
    )

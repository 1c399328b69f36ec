"""``ai.coda::UnpackTokens``: scatter packed rows back to a ragged batch.

Passes make it, so it has no torch operator.
"""

import onnx

from coda_ops.domain import formal, function, schema

SCHEMA = schema(
    "UnpackTokens",
    "Packed rows at their places, zero elsewhere: x[used] = rows.",
    [formal("rows", "T", "[rows, width]"), formal("used", "tensor(bool)", "[batch, tokens]")],
    [formal("x", "T", "[batch, tokens, width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(
        "UnpackTokens (rows, used) => (x)",
        """
        sizes = Shape (used)
        width = Shape <start: int = 1> (rows)
        shape = Concat <axis: int = 0> (sizes, width)
        zero_float = Constant <value = float {0.0}> ()
        zero = CastLike(zero_float, rows)
        zeros = Expand(zero, shape)
        places = NonZero(used)
        positions = Transpose(places)
        x = ScatterND(zeros, positions, rows)""",
    )

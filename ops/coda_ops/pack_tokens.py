"""``ai.coda::PackTokens``: gather the valid tokens of a ragged batch into [rows, hidden].

Passes make it, so it has no torch operator.
"""

import onnx

from coda_ops.domain import formal, function, schema

SCHEMA = schema(
    "PackTokens",
    "The tokens in use, sequence by sequence: rows = x[used].",
    [formal("x", "T", "[batch, tokens, width]"), formal("used", "tensor(bool)", "[batch, tokens]")],
    [formal("rows", "T", "[rows, width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(
        "PackTokens (x, used) => (rows)",
        """
        one = Constant <value = int64[1] {-1}> ()
        width = Shape <start: int = 2> (x)
        flat_shape = Concat <axis: int = 0> (one, width)
        flat = Reshape(x, flat_shape)
        kept = Reshape(used, one)
        rows = Compress <axis: int = 0> (flat, kept)""",
    )

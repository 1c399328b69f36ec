"""``ai.coda::UnpackTokens``: packed rows back at their places in a ragged batch.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
from torch import Tensor

from coda_ops.domain import formal, function, schema


def unpack_tokens(rows: Tensor, used: Tensor) -> Tensor:
    """The inverse of ``pack_tokens``, zero where no token is in use.

    Args:
        rows: [rows, width], as many as ``used`` is true.
        used: [batch, tokens] bool.

    Returns:
        [batch, tokens, width].
    """
    unpacked = rows.new_zeros((*used.shape, rows.shape[-1]))
    unpacked[used] = rows
    return unpacked


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
        texts = Shape (used)
        width = Shape <start: int = 1> (rows)
        shape = Concat <axis: int = 0> (texts, width)
        zero_float = Constant <value_float: float = 0.0> ()
        zero = CastLike(zero_float, rows)
        zeros = Expand(zero, shape)
        places = NonZero(used)
        positions = Transpose(places)
        x = ScatterND(zeros, positions, rows)""",
    )

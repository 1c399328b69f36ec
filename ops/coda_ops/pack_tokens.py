"""``ai.coda::PackTokens``: the tokens of a ragged batch in use, one behind the other.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
from torch import Tensor

from coda_ops.domain import formal, function, schema


def pack_tokens(x: Tensor, used: Tensor) -> Tensor:
    """``x[used]``.

    Args:
        x: [batch, tokens, width].
        used: [batch, tokens] bool.

    Returns:
        [rows, width], rows being the number of tokens in use, text by text.
    """
    return x[used]


SCHEMA = schema(
    "PackTokens",
    "The tokens in use, text by text: rows = x[used].",
    [formal("x", "T", "[batch, tokens, width]"), formal("used", "tensor(bool)", "[batch, tokens]")],
    [formal("rows", "T", "[rows, width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only."""
    return function(
        "PackTokens (x, used) => (rows)",
        """
        one = Constant <value_ints: ints = [-1]> ()
        width = Shape <start: int = 2> (x)
        flat_shape = Concat <axis: int = 0> (one, width)
        flat = Reshape(x, flat_shape)
        kept = Reshape(used, one)
        rows = Compress <axis: int = 0> (flat, kept)""",
    )

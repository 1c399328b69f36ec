"""``ai.coda::SelfAttention``: scores, mask, softmax and mixing of every head, from one product's output.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
from onnx.defs import OpSchema
from torch import Tensor

from coda_ops import RUNTIME_DOMAIN
from coda_ops.domain import formal, function, schema


def self_attention(qkv: Tensor, bias: Tensor, num_heads: int, scale: float) -> Tensor:
    """``softmax(query · keyᵀ * scale + bias) · value`` in every head.

    Args:
        qkv: [batch, tokens, 3 * width], queries, keys and values side by side, the heads of each one behind the other.
        bias: [batch, 1, 1, tokens], of the keys.

    Returns:
        [batch, tokens, width].
    """
    batch, tokens, width = qkv.shape
    parts = qkv.view(batch, tokens, 3, num_heads, width // 3 // num_heads).permute(2, 0, 3, 1, 4)
    query, key, value = parts  # [batch, heads, tokens, head width] each
    weights = (query @ key.transpose(2, 3) * scale + bias).softmax(-1)  # [batch, heads, tokens, tokens]
    out: Tensor = (weights @ value).transpose(1, 2).flatten(2)
    return out


SCHEMA = schema(
    "SelfAttention",
    "softmax(query · keyᵀ * scale + bias) · value in every head, of queries, keys and values that lie side by side.",
    [
        formal("qkv", "T", "[batch, tokens, 3 * width]"),
        formal("bias", "T", "[batch, 1, 1, tokens], of the keys."),
    ],
    [formal("out", "T", "[batch, tokens, width]")],
    attributes=[
        OpSchema.Attribute("num_heads", OpSchema.AttrType.INT, "Heads, which share the width.", required=True),
        OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT, "Of the scores.", required=True),
    ],
)


def body() -> onnx.FunctionProto:
    """The function body: onnxruntime's own operator, which wants the bias once for each query."""
    return function(
        "SelfAttention <num_heads, scale> (qkv, bias) => (out)",
        f"""
        query, key, value = Split <axis: int = -1, num_outputs: int = 3> (qkv)
        one = Constant <value_ints: ints = [1]> ()
        texts = Shape <start: int = 0, end: int = 1> (qkv)
        tokens = Shape <start: int = 1, end: int = 2> (qkv)
        shape = Concat <axis: int = 0> (texts, one, tokens, tokens)
        every = Expand(bias, shape)
        out = {RUNTIME_DOMAIN}.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>
            (query, key, value, , , every)""",
        domains=(RUNTIME_DOMAIN,),
    )

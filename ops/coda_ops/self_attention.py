"""``ai.coda::SelfAttention``: multi-head attention from the output of one fused query-key-value layer.

Passes make it, so it has no torch operator.
"""

import onnx
from onnx.defs import OpSchema

from coda_ops import RUNTIME_DOMAIN
from coda_ops.domain import formal, function, schema

ATTRIBUTES = [  # of every attention
    OpSchema.Attribute("num_heads", OpSchema.AttrType.INT, "Heads, which share the width.", required=True),
    OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT, "Of the scores.", required=True),
]
SCHEMA = schema(
    "SelfAttention",
    "softmax(query · keyᵀ * scale + bias) · value in every head, of queries, keys and values that lie side by side.",
    [
        formal("qkv", "T", "[batch, tokens, 3 * width]; the heads of each part one behind the other."),
        formal("bias", "T", "[batch, 1, 1, tokens], of the keys."),
    ],
    [formal("out", "T", "[batch, tokens, width]")],
    attributes=ATTRIBUTES,
)


def body() -> onnx.FunctionProto:
    """The function body: onnxruntime's own operator, which wants the bias once for each query."""
    return function(
        "SelfAttention <num_heads, scale> (qkv, bias) => (out)",
        f"""
        query, key, value = Split <axis: int = -1, num_outputs: int = 3> (qkv)
        one = Constant <value = int64[1] {{1}}> ()
        batch = Shape <start: int = 0, end: int = 1> (qkv)
        tokens = Shape <start: int = 1, end: int = 2> (qkv)
        shape = Concat <axis: int = 0> (batch, one, tokens, tokens)
        every = Expand(bias, shape)
        out = {RUNTIME_DOMAIN}.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>
            (query, key, value, , , every)""",
        domains=(RUNTIME_DOMAIN,),
    )

"""``ai.coda::KToAllAttention``: multi-head attention of routed tokens to all tokens, whose keys and values are thin.

Routed tokens have the keys and values that one fused linear layer made beside their queries. ``CrossAttention`` is for
keys and values that are all from elsewhere. Passes make both, so they have no torch operators.
"""

import onnx

from coda_ops import RUNTIME_DOMAIN
from coda_ops.domain import formal, function, schema
from coda_ops.self_attention import ATTRIBUTES
from coda_ops.set_tokens import replaced

_KEY_VALUE = formal("key_value", "T", "[batch, tokens, 2 * width]; all heads of keys before those of values.")
_BIAS = formal("bias", "T", "[batch or 1, heads or 1, queries or 1, tokens]")

SCHEMA = schema(
    "KToAllAttention",
    "softmax(query · keyᵀ * scale + bias) · value in every head, of keys and values that are SetTokens(key_value, "
    "indices, used, own), where queries and own keys and values lie side by side.",
    [
        formal("qkv", "T", "[batch, slots, 3 * width]; the heads of each part one behind the other."),
        _KEY_VALUE,
        formal("indices", "tensor(int64)", "[batch, slots], distinct within a row."),
        formal("used", "tensor(bool)", "[batch, slots]"),
        _BIAS,
    ],
    [formal("out", "T", "[batch, slots, width]")],
    attributes=ATTRIBUTES,
)
CROSS_SCHEMA = schema(
    "CrossAttention",
    "softmax(query · keyᵀ * scale + bias) · value in every head, of keys and values that lie side by side.",
    [formal("query", "T", "[batch, queries, width]"), _KEY_VALUE, _BIAS],
    [formal("out", "T", "[batch, queries, width]")],
    attributes=ATTRIBUTES,
)


def body() -> onnx.FunctionProto:
    """The function body: onnxruntime's own attention behind a scatter."""
    return function(
        "KToAllAttention <num_heads, scale> (qkv, key_value, indices, used, bias) => (out)",
        f"""
        query, own_key, own_value = Split <axis: int = -1, num_outputs: int = 3> (qkv)
        own = Concat <axis: int = -1> (own_key, own_value)
        {replaced("key_value", "own", "memory")}
        {_attention("query", "memory")}""",
        domains=(RUNTIME_DOMAIN,),
    )


def cross_body() -> onnx.FunctionProto:
    """That of CrossAttention."""
    return function(
        "CrossAttention <num_heads, scale> (query, key_value, bias) => (out)",
        _attention("query", "key_value"),
        domains=(RUNTIME_DOMAIN,),
    )


def _attention(query: str, memory: str) -> str:
    """The statements that make ``out``; onnxruntime wants a bias once for each query."""
    return f"""
        key, value = Split <axis: int = -1, num_outputs: int = 2> ({memory})
        lone = Constant <value = int64[1] {{1}}> ()
        queries = Shape <start: int = 1, end: int = 2> ({query})
        every_query = Concat <axis: int = 0> (lone, lone, queries, lone)
        every = Expand(bias, every_query)
        out = {RUNTIME_DOMAIN}.MultiHeadAttention <num_heads: int = @num_heads, scale: float = @scale>
            ({query}, key, value, , , every)"""

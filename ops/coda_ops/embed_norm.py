"""``ai.coda::EmbedNorm``: lookups of words, types and positions, their sum and its layer norm, fused.

``Int8EmbedNorm`` has int8 word embeddings, each row with its own scale. Passes make both, so they have no torch
operators.
"""

import onnx
from onnx.defs import OpSchema

from coda_ops.domain import formal, function, schema

_IDS = "[batch, tokens], or 1 in the place of either; below 0 they count from the end of the table, as in Gather."
_REST = [
    formal("types", "tensor(float)", "[kinds, width]"),
    formal("type_ids", "tensor(int64)", _IDS),
    formal("positions", "tensor(float)", "[longest, width]"),
    formal("position_ids", "tensor(int64)", _IDS),
    formal("scale", "tensor(float)", "[width]"),
    formal("bias", "tensor(float)", "[width]"),
]
_NAMES = ", ".join(one.name for one in _REST)
_OUT = [formal("out", "tensor(float)", "[batch, tokens, width]")]
_EPSILON = [OpSchema.Attribute("epsilon", OpSchema.AttrType.FLOAT, "Added to the variance.", required=True)]

SCHEMA = schema(
    "EmbedNorm",
    "LayerNormalization of words[ids] + types[type_ids] + positions[position_ids] over the last axis.",
    [
        formal("words", "tensor(float)", "[vocabulary, width]"),
        formal("ids", "tensor(int64)", "[batch, tokens], as the others."),
        *_REST,
    ],
    _OUT,
    attributes=_EPSILON,
)

INT8_SCHEMA = schema(
    "Int8EmbedNorm",
    "EmbedNorm whose words are words * words_scale.",
    [
        formal("words", "tensor(int8)", "[vocabulary, width]"),
        formal("words_scale", "tensor(float)", "[vocabulary, 1]"),
        formal("ids", "tensor(int64)", "[batch, tokens], as the others."),
        *_REST,
    ],
    _OUT,
    attributes=_EPSILON,
)

_NORM = """
        type = Gather(types, type_ids)
        typed = Add(word, type)
        position = Gather(positions, position_ids)
        sum = Add(typed, position)
        out = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (sum, scale, bias)"""


def body() -> onnx.FunctionProto:
    """The function body, standard operators only; runtimes fuse them where they can."""
    return function(
        f"EmbedNorm <epsilon> (words, ids, {_NAMES}) => (out)",
        f"""
        word = Gather(words, ids)
        {_NORM}""",
    )


def int8_body() -> onnx.FunctionProto:
    """The same with int8 word embeddings."""
    return function(
        f"Int8EmbedNorm <epsilon> (words, words_scale, ids, {_NAMES}) => (out)",
        f"""
        quantised = Gather(words, ids)
        unscaled = Cast <to: int = 1> (quantised)
        word_scale = Gather(words_scale, ids)
        word = Mul(unscaled, word_scale)
        {_NORM}""",
    )

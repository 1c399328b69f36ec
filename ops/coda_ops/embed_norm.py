"""``ai.coda::EmbedNorm``: words, types and positions looked up, added, and the layer norm of that, in one.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
import torch.nn.functional as F
from onnx.defs import OpSchema
from torch import Tensor

from coda_ops.domain import formal, function, schema


def embed_norm(
    words: Tensor,
    ids: Tensor,
    types: Tensor,
    type_ids: Tensor,
    positions: Tensor,
    position_ids: Tensor,
    scale: Tensor,
    bias: Tensor,
    epsilon: float,
    steps: Tensor | None = None,
) -> Tensor:
    """``norm(words[ids] + types[type_ids] + positions[position_ids]) * scale + bias``, the norm over the last axis.

    Args:
        words: [vocabulary, width]; int8 where ``steps`` says what a level of each word is worth.
        ids: [batch, tokens] int64; below 0 they count from the table's end, as in Gather.
        types: [kinds, width]; type_ids: as ids, or 1 in the place of batch or tokens.
        positions: [longest, width]; position_ids: as type_ids.
        scale, bias: [width].
        steps: [vocabulary, 1].

    Returns:
        [batch, tokens, width] float32.
    """
    word = words[ids].float() if steps is None else words[ids].float() * steps[ids]
    return F.layer_norm(word + types[type_ids] + positions[position_ids], scale.shape, scale, bias, epsilon)


_IDS = "[batch, tokens] or 1 in the place of either"
_REST = [
    formal("types", "tensor(float)", "[kinds, width]"),
    formal("type_ids", "tensor(int64)", _IDS),
    formal("positions", "tensor(float)", "[longest, width]"),
    formal("position_ids", "tensor(int64)", _IDS),
    formal("scale", "tensor(float)", "[width]"),
    formal("bias", "tensor(float)", "[width]"),
]
_OUT = [formal("out", "tensor(float)", "[batch, tokens, width]")]
_EPSILON = [OpSchema.Attribute("epsilon", OpSchema.AttrType.FLOAT, "Added to the variance.", required=True)]

SCHEMA = schema(
    "EmbedNorm",
    "LayerNormalization of words[ids] + types[type_ids] + positions[position_ids] over the last axis.",
    [
        formal("words", "tensor(float)", "[vocabulary, width]"),
        formal("ids", "tensor(int64)", "[batch, tokens]"),
        *_REST,
    ],
    _OUT,
    floats=False,
    attributes=_EPSILON,
)

INT8_SCHEMA = schema(
    "Int8EmbedNorm",
    "EmbedNorm whose words are words * steps.",
    [
        formal("words", "tensor(int8)", "[vocabulary, width]"),
        formal("steps", "tensor(float)", "[vocabulary, 1]"),
        formal("ids", "tensor(int64)", "[batch, tokens]"),
        *_REST,
    ],
    _OUT,
    floats=False,
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
        "EmbedNorm <epsilon> (words, ids, types, type_ids, positions, position_ids, scale, bias) => (out)",
        f"""
        word = Gather(words, ids)
        {_NORM}""",
    )


def int8_body() -> onnx.FunctionProto:
    """The same of words in eight bits."""
    return function(
        "Int8EmbedNorm <epsilon> (words, steps, ids, types, type_ids, positions, position_ids, scale, bias) => (out)",
        f"""
        level = Gather(words, ids)
        wide = Cast <to: int = 1> (level)
        step = Gather(steps, ids)
        word = Mul(wide, step)
        {_NORM}""",
    )

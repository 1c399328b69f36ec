"""``ai.coda::Int4Linear``: a frozen layer's product with weights stored in four bits, groups of inputs sharing a scale.

Activations and arithmetic stay float32. Weights are constants, so a runtime unpacks them once, when it loads the model.
"""

from math import gcd
from typing import NamedTuple

import onnx
import torch
from torch import Tensor

from coda_ops.domain import formal, function, schema

GROUP = 32  # inputs that share a scale, where their number is a multiple of it
LEVELS = 7  # of either sign


class Int4Weights(NamedTuple):
    """A weight matrix in four bits.

    Attributes:
        weight: [inputs / 2, outputs] uint8: input i in the low half of row i, input i + inputs / 2 in the high half of
            the same row; 8 stands for 0.
        scale: [groups, outputs] float32, what a level is worth to inputs / groups inputs in a row.
    """

    weight: Tensor
    scale: Tensor


def quantize(weight: Tensor) -> Int4Weights:
    """Round each group of each output's weights to 15 levels of its own.

    Args:
        weight: [inputs, outputs] floating, an even number of inputs.
    """
    inputs, outputs = weight.shape
    grouped = weight.float().reshape(-1, gcd(inputs, GROUP), outputs)
    highest = grouped.abs().amax(1, keepdim=True)  # [groups, 1, outputs]
    scale = torch.where(highest > 0, highest / LEVELS, 1.0)
    levels = ((grouped / scale).round().clamp(-LEVELS, LEVELS) + 8).to(torch.uint8).reshape(inputs, outputs)
    low, high = levels.chunk(2)
    return Int4Weights(low + high * 16, scale.squeeze(1))


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """[inputs / 2, outputs] uint8 and [groups, outputs] -> [inputs, outputs] float32."""
    levels = torch.cat([weight & 15, weight >> 4]).float() - 8
    grouped = levels.reshape(scale.shape[0], -1, scale.shape[1]) * scale.unsqueeze(1)
    return grouped.reshape(levels.shape)


@torch.library.custom_op("coda::int4_linear", mutates_args=())
def _int4_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x @ dequantize(weight, scale) + bias


@_int4_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def int4_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``x · dequantize(weight, scale) + bias``; no gradient.

    Args:
        x: [..., inputs] float32.
        weight, scale: as in ``Int4Weights``.
        bias: [outputs] float32.

    Returns:
        [..., outputs].
    """
    result: Tensor = _int4_linear(x, weight, scale, bias)
    return result


SCHEMA = schema(
    "Int4Linear",
    "y = x · w + bias, where w is (level - 8) * scale, two levels to a byte: input i in the low half of row i, input "
    "i + inputs / 2 in the high half.",
    [
        formal("x", "tensor(float)", "[..., inputs]"),
        formal("weight", "tensor(uint8)", "[inputs / 2, outputs]"),
        formal("scale", "tensor(float)", "[groups, outputs], of inputs / groups inputs in a row."),
        formal("bias", "tensor(float)", "[outputs]"),
    ],
    [formal("y", "tensor(float)", "[..., outputs]")],
    floats=False,
)


def body() -> onnx.FunctionProto:
    """The function body. All but its last two operators depend on constants alone, and are folded at loading."""
    return function(
        "Int4Linear (x, weight, scale, bias) => (y)",
        """
        mask = Constant <value = uint8 {15}> ()
        four = Constant <value = uint8 {4}> ()
        eight = Constant <value_float: float = 8.0> ()
        rest = Constant <value_ints: ints = [-1]> ()
        middle = Constant <value_ints: ints = [1]> ()
        low = BitwiseAnd(weight, mask)
        high = BitShift <direction: string = "RIGHT"> (weight, four)
        levels = Concat <axis: int = 0> (low, high)
        numbers = Cast <to: int = 1> (levels)
        signed = Sub(numbers, eight)
        groups = Shape <start: int = 0, end: int = 1> (scale)
        outputs = Shape <start: int = 1> (scale)
        by_group = Concat <axis: int = 0> (groups, rest, outputs)
        grouped = Reshape(signed, by_group)
        spread = Unsqueeze(scale, middle)
        scaled = Mul(grouped, spread)
        flat = Concat <axis: int = 0> (rest, outputs)
        dense = Reshape(scaled, flat)
        product = MatMul(x, dense)
        y = Add(product, bias)""",
    )

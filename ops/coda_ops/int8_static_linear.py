"""``ai.coda::Int8StaticLinear``: a frozen layer's product with int8 weights, activations rounded by one step.

The step was measured beforehand on texts like those to come. The operator stands in graphs on their way through the
compiler alone, which lowers it to ``QuantizeLinear`` and ``DequantizeLinear`` around a ``MatMul``: the form that every
runtime multiplies bytes for, with kernels of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from coda_ops import int8_linear
from coda_ops.domain import formal, schema

LEVELS = 255  # above the lowest


class SignedWeights(NamedTuple):
    """A weight matrix in eight bits, as QuantizeLinear has them.

    Attributes:
        weight: [inputs, outputs] int8.
        scale: [outputs] float32, what a level is worth.
    """

    weight: Tensor
    scale: Tensor


class Rounding(NamedTuple):
    """How activations become bytes: ``clamp(round(x / step) + zero, 0, 255)``.

    Attributes:
        step: [] float32, what a level is worth.
        zero: [] uint8, the level that stands for 0.
    """

    step: Tensor
    zero: Tensor


def quantize(weight: Tensor) -> SignedWeights:
    """Round each output's weights to 255 levels of its own, as ``int8_linear.quantize`` does.

    Args:
        weight: [inputs, outputs] floating.
    """
    levels, scale = int8_linear.quantize(weight)
    return SignedWeights((levels.to(torch.int16) - 128).to(torch.int8), scale)


def rounding_of(low: float, high: float) -> Rounding:
    """The 256 levels that reach from the lowest activation to the highest, 0 among them.

    Args:
        low, high: finite; a range without 0 is widened to it, and one too narrow for float32 is 0 alone.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    width = (high - low) / LEVELS
    step = torch.tensor(width if width >= torch.finfo(torch.float32).tiny else 1.0)  # nothing is divided by nothing
    return Rounding(step, (-low / step).round().clamp(0, LEVELS).to(torch.uint8))


def levels(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Whole numbers from 0 to 255, of x's shape and type."""
    return ((x / step).round() + zero).clamp(0, LEVELS)


def multiply(levels: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """``int8_static_linear`` of what is rounded already."""
    product = (levels.double() - zero) @ weight.double()  # whole numbers below 2^53: exact
    return product.to(levels.dtype) * (step * scale) + bias


@torch.library.custom_op("coda::int8_static_linear", mutates_args=())
def _int8_static_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return multiply(levels(x, step, zero), weight, scale, bias, step, zero)


@_int8_static_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def int8_static_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """``((clamp(round(x / step) + zero, 0, 255) - zero) · weight) * step * scale + bias``; no gradient.

    Args:
        x: [..., inputs] float32; what lies outside of the levels becomes the nearest one.
        weight: [inputs, outputs] int8.
        scale, bias: [outputs] float32.
        step, zero: see ``Rounding``.

    Returns:
        [..., outputs].
    """
    result: Tensor = _int8_static_linear(x, weight, scale, bias, step, zero)
    return result


SCHEMA = schema(
    "Int8StaticLinear",
    "y = ((clamp(round(x / step) + zero, 0, 255) - zero) · weight) * step * scale + bias. Rounds half to even; the "
    "product is exact.",
    [
        formal("x", "tensor(float)", "[..., inputs]"),
        formal("weight", "tensor(int8)", "[inputs, outputs]"),
        formal("scale", "tensor(float)", "[outputs]"),
        formal("bias", "tensor(float)", "[outputs]"),
        formal("step", "tensor(float)", "[], what a level of x is worth."),
        formal("zero", "tensor(uint8)", "[], the level that stands for 0."),
    ],
    [formal("y", "tensor(float)", "[..., outputs]")],
    floats=False,
)

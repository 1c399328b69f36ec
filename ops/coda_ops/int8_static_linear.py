"""``ai.coda::Int8StaticLinear``: a frozen linear layer with per-channel int8 weights and a static activation scale.

Scale and zero point of the activations were calibrated beforehand. A pass lowers the operator to ``QuantizeLinear`` and
``DequantizeLinear`` around a ``MatMul``, the form that runtimes have int8 kernels of their own for.
"""

from typing import NamedTuple

import onnx
import torch
from torch import Tensor

from coda_ops import int8_linear
from coda_ops.domain import formal, function, schema

QUANTISED_MAX = 255  # of the activations, from 0


class SignedWeight(NamedTuple):
    """An int8 weight matrix, as DequantizeLinear takes it.

    Attributes:
        weight: [inputs, outputs] int8, with zero point 0.
        scale: [outputs] float32.
    """

    weight: Tensor
    scale: Tensor


class Quantisation(NamedTuple):
    """How activations become bytes: ``clamp(round(x / scale) + zero_point, 0, 255)``.

    Attributes:
        scale: [] float32.
        zero_point: [] uint8.
    """

    scale: Tensor
    zero_point: Tensor


def quantise_weight(weight: Tensor) -> SignedWeight:
    """The numbers that ``int8_linear.quantise`` gives, signed.

    Args:
        weight: [inputs, outputs] floating.
    """
    quantised, scale = int8_linear.quantise(weight)
    return SignedWeight((quantised.to(torch.int16) - int8_linear.ZERO_POINT).to(torch.int8), scale)


def quantisation_of(low: float, high: float) -> Quantisation:
    """Scale and zero point of activations that reach from the lowest to the highest.

    Args:
        low, high: finite; a range without 0 is widened to it, and one too narrow for float32 is 0 alone.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    width = (high - low) / QUANTISED_MAX
    scale = torch.tensor(width if width >= torch.finfo(torch.float32).tiny else 1.0)  # 0 is divided by something
    return Quantisation(scale, (-low / scale).round().clamp(0, QUANTISED_MAX).to(torch.uint8))


def quantise(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Integers from 0 to 255, of x's shape and type."""
    return ((x / scale).round() + zero_point).clamp(0, QUANTISED_MAX)


def linear(
    quantised: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, x_scale: Tensor, x_zero_point: Tensor
) -> Tensor:
    """``int8_static_linear`` of activations that are quantised already."""
    accumulated = (quantised.double() - x_zero_point) @ weight.double()  # integers below 2^53: exact
    return accumulated.to(quantised.dtype) * (x_scale * scale) + bias


@torch.library.custom_op("coda::int8_static_linear", mutates_args=())
def _int8_static_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, x_scale: Tensor, x_zero_point: Tensor
) -> Tensor:
    return linear(quantise(x, x_scale, x_zero_point), weight, scale, bias, x_scale, x_zero_point)


@_int8_static_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, x_scale: Tensor, x_zero_point: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def int8_static_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, x_scale: Tensor, x_zero_point: Tensor
) -> Tensor:
    """``((quantise(x) - x_zero_point) · weight) * x_scale * scale + bias``; no gradient.

    Args:
        x: [..., inputs] float32; what lies outside of the range becomes its nearest end.
        weight: [inputs, outputs] int8.
        scale, bias: [outputs] float32.
        x_scale, x_zero_point: see ``Quantisation``.

    Returns:
        [..., outputs].
    """
    result: Tensor = _int8_static_linear(x, weight, scale, bias, x_scale, x_zero_point)
    return result


SCHEMA = schema(
    "Int8StaticLinear",
    "y = ((clamp(round(x / x_scale) + x_zero_point, 0, 255) - x_zero_point) · weight) * x_scale * scale + bias. Rounds "
    "half to even.",
    [
        formal("x", "tensor(float)", "[..., inputs]"),
        formal("weight", "tensor(int8)", "[inputs, outputs], with zero point 0."),
        formal("scale", "tensor(float)", "[outputs], of the weight."),
        formal("bias", "tensor(float)", "[outputs]"),
        formal("x_scale", "tensor(float)", "[]"),
        formal("x_zero_point", "tensor(uint8)", "[]"),
    ],
    [formal("y", "tensor(float)", "[..., outputs]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only: what the pass lowers the operator to, by itself."""
    return function(
        "Int8StaticLinear (x, weight, scale, bias, x_scale, x_zero_point) => (y)",
        """
        quantised = QuantizeLinear(x, x_scale, x_zero_point)
        x_dequantised = DequantizeLinear(quantised, x_scale, x_zero_point)
        dequantised = DequantizeLinear <axis: int = 1> (weight, scale)
        matmul = MatMul(x_dequantised, dequantised)
        y = Add(matmul, bias)""",
    )

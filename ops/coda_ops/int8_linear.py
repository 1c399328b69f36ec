"""``ai.coda::Int8Linear``: a frozen linear layer with per-channel int8 weights and per-token int8 activations.

Weights have a scale per output channel. Activations have one per token, not one for the whole batch, so that an answer
does not depend on what else is in the batch. ``Int8LinearGelu`` is the GELU of it; passes make that one.
"""

from typing import NamedTuple

import onnx
import torch
from torch import Tensor

from coda_ops.add_gelu import gelu
from coda_ops.domain import formal, function, schema

QUANTISED_MAX = 127  # of either sign
ZERO_POINT = 128  # of the weights, which are unsigned


class Int8Weight(NamedTuple):
    """An int8 weight matrix.

    Attributes:
        weight: [inputs, outputs] uint8, with zero point 128.
        scale: [outputs] float32.
    """

    weight: Tensor
    scale: Tensor


def quantise(weight: Tensor) -> Int8Weight:
    """Quantise each output channel symmetrically, to the integers from -127 to 127.

    Args:
        weight: [inputs, outputs] floating.
    """
    highest = weight.abs().amax(0)  # [outputs]
    scale = torch.where(highest > 0, highest / QUANTISED_MAX, 1.0).float()
    quantised = (weight / scale).round().clamp(-QUANTISED_MAX, QUANTISED_MAX)
    return Int8Weight((quantised + ZERO_POINT).to(torch.uint8), scale)


@torch.library.custom_op("coda::int8_linear", mutates_args=())
def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    x_scale = x.abs().amax(-1, keepdim=True) / QUANTISED_MAX  # [..., 1]
    x_scale = torch.where(x_scale > 0, x_scale, 1.0)
    quantised = (x / x_scale).round()  # NaN where x is not finite
    accumulated = quantised.double() @ (weight.double() - ZERO_POINT)  # integers below 2^53: exact
    return accumulated.to(x.dtype) * x_scale * scale + bias


@_int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``(round(x / x_scale) · (weight - 128)) * x_scale * scale + bias``; no gradient.

    Each token has its own x_scale, max|x| / 127. A token of which one number is not finite gives NaN alone.

    Args:
        x: [..., inputs] float32.
        weight: [inputs, outputs] uint8, with zero point 128.
        scale, bias: [outputs] float32.

    Returns:
        [..., outputs].
    """
    result: Tensor = _int8_linear(x, weight, scale, bias)
    return result


_INPUTS = [
    formal("x", "tensor(float)", "[..., inputs]"),
    formal("weight", "tensor(uint8)", "[inputs, outputs], with zero point 128."),
    formal("scale", "tensor(float)", "[outputs], of the weight."),
    formal("bias", "tensor(float)", "[outputs]"),
]
_OUTPUTS = [formal("y", "tensor(float)", "[..., outputs]")]
SCHEMA = schema(
    "Int8Linear",
    "y = (round(x / x_scale) · (weight - 128)) * x_scale * scale + bias, where x_scale is max|x| / 127 over the last "
    "axis, 1 where all of it is 0. Rounds half to even; the matmul is of integers, and exact. Rows with a number that "
    "is not finite give NaN.",
    _INPUTS,
    _OUTPUTS,
)
GELU_SCHEMA = schema("Int8LinearGelu", "y = gelu(Int8Linear(x)), by the error function.", _INPUTS, _OUTPUTS)


def body() -> onnx.FunctionProto:
    """The function body. Both sides of the matmul are unsigned: signed ones saturate on processors without VNNI."""
    constants, linear = statements("x", "weight", "scale", "bias", "y")
    return function("Int8Linear (x, weight, scale, bias) => (y)", constants + linear)


def gelu_body() -> onnx.FunctionProto:
    """That of Int8LinearGelu."""
    constants, linear = statements("x", "weight", "scale", "bias", "made")
    return function("Int8LinearGelu (x, weight, scale, bias) => (y)", constants + linear + gelu("made", "y"))


def statements(x: str, weight: str, scale: str, bias: str, y: str) -> tuple[str, str]:
    """The constants that the statements of two linear layers share, and the statements of one, in ONNX's text syntax.

    Bytes know no NaN and onnxruntime's ReduceMax loses it; the sum of a row's ratios keeps it, and is finite otherwise.

    Args:
        x, weight, scale, bias, y: names of its inputs and its output; what lies between is named after y.
    """
    constants = f"""
        last = Constant <value = int64[1] {{-1}}> ()
        zero = Constant <value = float {{0.0}}> ()
        one = Constant <value = float {{1.0}}> ()
        quantised_max = Constant <value = float {{{float(QUANTISED_MAX)}}}> ()
        shift = Constant <value = float {{{float(ZERO_POINT)}}}> ()
        zero_point = Constant <value = uint8 {{{ZERO_POINT}}}> ()"""
    linear = f"""
        {y}_abs = Abs({x})
        {y}_highest = ReduceMax <keepdims: int = 1> ({y}_abs, last)
        {y}_ratio_of_highest = Div({y}_highest, quantised_max)
        {y}_positive = Greater({y}_ratio_of_highest, zero)
        {y}_x_scale = Where({y}_positive, {y}_ratio_of_highest, one)
        {y}_ratio = Div({x}, {y}_x_scale)
        {y}_rounded = Round({y}_ratio)
        {y}_shifted = Add({y}_rounded, shift)
        {y}_quantised = Cast <to: int = 2> ({y}_shifted)
        {y}_accumulated = MatMulInteger({y}_quantised, {weight}, zero_point, zero_point)
        {y}_matmul = Cast <to: int = 1> ({y}_accumulated)
        {y}_total = ReduceSum <keepdims: int = 1> ({y}_ratio, last)
        {y}_nan_or_zero = Mul({y}_total, zero)
        {y}_checked_scale = Add({y}_x_scale, {y}_nan_or_zero)
        {y}_by_token = Mul({y}_matmul, {y}_checked_scale)
        {y}_by_channel = Mul({y}_by_token, {scale})
        {y} = Add({y}_by_channel, {bias})"""
    return constants, linear

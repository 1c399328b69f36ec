"""``ai.coda::Int8Linear``: a frozen layer's product with int8 weights, each token rounded by a step of its own.

A step for every token, not one for the whole batch, so that an answer does not depend on what a text is batched with.
"""

from typing import NamedTuple

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from coda_ops.add_gelu import gelu
from coda_ops.domain import formal, function, schema

LEVELS = 127  # of either sign


class Int8Weights(NamedTuple):
    """A weight matrix in eight bits.

    Attributes:
        weight: [inputs, outputs] uint8, 128 stands for 0.
        scale: [outputs] float32, what a level is worth.
    """

    weight: Tensor
    scale: Tensor


def quantize(weight: Tensor) -> Int8Weights:
    """Round each output's weights to 255 levels of its own.

    Args:
        weight: [inputs, outputs] floating.
    """
    highest = weight.abs().amax(0)  # [outputs]
    scale = torch.where(highest > 0, highest / LEVELS, 1.0).float()
    levels = (weight / scale).round().clamp(-LEVELS, LEVELS)
    return Int8Weights((levels + 128).to(torch.uint8), scale)


@torch.library.custom_op("coda::int8_linear", mutates_args=())
def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    share = x.abs().amax(-1, keepdim=True) / LEVELS  # [..., 1]
    step = torch.where(share > 0, share, 1.0)
    levels = (x / step).round()  # NaN where x is not finite
    product = levels.double() @ (weight.double() - 128)  # whole numbers below 2^53: exact
    return product.to(x.dtype) * step * scale + bias


@_int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``(round(x / step) · (weight - 128)) * step * scale + bias``, step = max|x| / 127 of each token; no gradient.

    A token of which one number is not finite gives NaN alone.

    Args:
        x: [..., inputs] float32.
        weight: [inputs, outputs] uint8, 128 stands for 0.
        scale, bias: [outputs] float32.

    Returns:
        [..., outputs].
    """
    result: Tensor = _int8_linear(x, weight, scale, bias)
    return result


def int8_linear_gelu(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The GELU of ``int8_linear``. The compiler alone puts its operator into models."""
    return F.gelu(int8_linear(x, weight, scale, bias))


_INPUTS = [
    formal("x", "tensor(float)", "[..., inputs]"),
    formal("weight", "tensor(uint8)", "[inputs, outputs], 128 stands for 0."),
    formal("scale", "tensor(float)", "[outputs]"),
    formal("bias", "tensor(float)", "[outputs]"),
]
_OUTPUTS = [formal("y", "tensor(float)", "[..., outputs]")]
SCHEMA = schema(
    "Int8Linear",
    "y = (round(x / step) · (weight - 128)) * step * scale + bias, where step is max|x| / 127 over the last axis, 1 "
    "where all of it is 0. Rounds half to even; the product is exact. Rows with a number that is not finite give NaN.",
    _INPUTS,
    _OUTPUTS,
    floats=False,
)
GELU_SCHEMA = schema(
    "Int8LinearGelu", "y = gelu(Int8Linear(x)), by the error function.", _INPUTS, _OUTPUTS, floats=False
)


def body() -> onnx.FunctionProto:
    """The function body. Both sides of the product are unsigned: signed ones saturate on processors without VNNI."""
    constants, product = statements("x", "weight", "scale", "bias", "y")
    return function("Int8Linear (x, weight, scale, bias) => (y)", constants + product)


def gelu_body() -> onnx.FunctionProto:
    """That of Int8LinearGelu."""
    constants, product = statements("x", "weight", "scale", "bias", "made")
    return function("Int8LinearGelu (x, weight, scale, bias) => (y)", constants + product + gelu("made", "y"))


def statements(x: str, weight: str, scale: str, bias: str, y: str) -> tuple[str, str]:
    """The constants that a product's statements share with another's, and those statements, in ONNX's text syntax.

    Bytes know no NaN and onnxruntime's ReduceMax loses it; the sum of a row's ratios keeps it, and is finite otherwise.

    Args:
        x, weight, scale, bias, y: names of its inputs and its output; what lies between is named after y.
    """
    constants = f"""
        last = Constant <value_ints: ints = [-1]> ()
        none = Constant <value_float: float = 0.0> ()
        one = Constant <value_float: float = 1.0> ()
        most = Constant <value_float: float = {float(LEVELS)}> ()
        middle = Constant <value_float: float = 128.0> ()
        zero = Constant <value = uint8 {{128}}> ()"""
    product = f"""
        {y}_size = Abs({x})
        {y}_highest = ReduceMax <keepdims: int = 1> ({y}_size, last)
        {y}_share = Div({y}_highest, most)
        {y}_some = Greater({y}_share, none)
        {y}_step = Where({y}_some, {y}_share, one)
        {y}_ratio = Div({x}, {y}_step)
        {y}_level = Round({y}_ratio)
        {y}_shifted = Add({y}_level, middle)
        {y}_bytes = Cast <to: int = 2> ({y}_shifted)
        {y}_product = MatMulInteger({y}_bytes, {weight}, zero, zero)
        {y}_wide = Cast <to: int = 1> ({y}_product)
        {y}_total = ReduceSum <keepdims: int = 1> ({y}_ratio, last)
        {y}_doubt = Mul({y}_total, none)
        {y}_worth = Add({y}_step, {y}_doubt)
        {y}_stepped = Mul({y}_wide, {y}_worth)
        {y}_scaled = Mul({y}_stepped, {scale})
        {y} = Add({y}_scaled, {bias})"""
    return constants, product

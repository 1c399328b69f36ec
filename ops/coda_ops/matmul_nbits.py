"""``com.microsoft::MatMulNBits``: a matmul with an int4 weight, also in memory, and its torch form.

onnxruntime defines the operator. Here it has int4 weights, no zero points, and float32 arithmetic: it dequantises as it
multiplies. Each output channel has a scale of its own for every block of input channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from onnx.defs import OpSchema
from torch import Tensor

from coda_ops import RUNTIME_DOMAIN
from coda_ops.domain import formal, schema

BITS = 4
BLOCK_SIZE = 32  # input channels that share a scale; the last block of a weight may be short
_ZERO_POINT = 8  # the operator's own where it is given none
_QUANTISED_MAX = 7  # of either sign
_FLOAT32 = 1  # accuracy level: activations are not quantised


class Int4Weight(NamedTuple):
    """A weight matrix as MatMulNBits takes it.

    Attributes:
        packed: [outputs, blocks, BLOCK_SIZE / 2] uint8, two values to a byte, the first in its low half, with zero
            point 8. A short last block is filled up with 0.
        scales: [outputs * blocks] float32.
    """

    packed: Tensor
    scales: Tensor


def quantise(weight: Tensor) -> Int4Weight:
    """Quantise each block of each output channel symmetrically, to the integers from -7 to 7.

    Args:
        weight: [inputs, outputs] floating.
    """
    inputs, outputs = weight.shape
    filled = F.pad(weight.T.float(), (0, -inputs % BLOCK_SIZE))
    blocks = filled.reshape(outputs, -1, BLOCK_SIZE)
    highest = blocks.abs().amax(-1, keepdim=True)  # [outputs, blocks, 1]
    scales = torch.where(highest > 0, highest / _QUANTISED_MAX, 1.0)
    quantised = (blocks / scales).round().clamp(-_QUANTISED_MAX, _QUANTISED_MAX) + _ZERO_POINT
    low, high = quantised.to(torch.uint8).reshape(outputs, -1, BLOCK_SIZE // 2, 2).unbind(-1)
    return Int4Weight(low + high * 16, scales.flatten())


def dequantise(packed: Tensor, scales: Tensor, inputs: int) -> Tensor:
    """The weight that an ``Int4Weight`` stands for, [inputs, outputs] float32."""
    outputs = packed.shape[0]
    quantised = torch.stack([packed & 15, packed >> 4], -1).reshape(scales.shape[0], BLOCK_SIZE)
    blocks = (quantised.float() - _ZERO_POINT) * scales.float().unsqueeze(1)
    return blocks.reshape(outputs, -1)[:, :inputs].T


@torch.library.custom_op("coda::matmul_nbits", mutates_args=())
def _matmul_nbits(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    K: int,  # noqa: N803  the operator's own names
    N: int,  # noqa: N803
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Tensor:
    return x @ dequantise(packed, scales, K).to(x.dtype)


@_matmul_nbits.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], N))


def matmul_nbits(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """``x · dequantise(packed, scales)``; no gradient.

    Args:
        x: [..., inputs] floating.
        packed, scales: see ``Int4Weight``.

    Returns:
        [..., outputs].
    """
    sizes = x.shape[-1], packed.shape[0]
    result: Tensor = _matmul_nbits(x, packed, scales, *sizes, BITS, BLOCK_SIZE, _FLOAT32)
    return result


_SIZES = {
    "K": "Input channels.",
    "N": "Output channels.",
    "bits": "Of a value.",
    "block_size": "Input channels that share a scale.",
    "accuracy_level": "1: activations stay float32.",
}
SCHEMA = schema(
    "MatMulNBits",
    "As much of onnxruntime's own operator as is used here: y = x · ((packed - 8) * scales).",
    [
        formal("x", "tensor(float)", "[..., K]"),
        formal("packed", "tensor(uint8)", "[N, blocks, block_size * bits / 8]"),
        formal("scales", "tensor(float)", "[N * blocks]"),
    ],
    [formal("y", "tensor(float)", "[..., N]")],
    attributes=[
        OpSchema.Attribute(name, OpSchema.AttrType.INT, about, required=True) for name, about in _SIZES.items()
    ],
    domain=RUNTIME_DOMAIN,
)

"""A linear layer as torch's exporter writes it."""

from dataclasses import dataclass

import onnx_ir as ir

from coda_compile.passes.values import constant, either_order, producer


@dataclass(frozen=True)
class Linear:
    """x · weight + bias in two operators.

    Attributes:
        x: [..., inputs].
        weight: [inputs, outputs], constant.
        bias: [outputs], constant.
        add: the node that adds the bias.
        matmul: the node that multiplies.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    add: ir.Node
    matmul: ir.Node


def linear_layer(value: ir.Value | None, *, uses: int = 1) -> Linear | None:
    """The linear layer that computes a value with so many uses; nobody else may read its product."""
    add = producer(value, "Add", uses=uses)
    for product, bias in () if add is None else either_order(add):
        matmul = producer(product, "MatMul")
        if add is None or matmul is None or bias is None or constant(bias, 1) is None:
            continue
        x, weight = matmul.inputs
        if x is not None and weight is not None and constant(weight, 2) is not None:
            return Linear(x, weight, bias, add, matmul)
    return None

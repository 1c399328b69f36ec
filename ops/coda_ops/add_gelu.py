"""``ai.coda::AddGelu``: a bias and the GELU behind it, in one.

The compiler alone puts it into models, so its torch form is a plain function.
"""

import onnx
import torch.nn.functional as F
from torch import Tensor

from coda_ops.domain import formal, function, schema


def add_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)`` by the error function.

    Args:
        x: [..., width].
        bias: [width].

    Returns:
        [..., width].
    """
    return F.gelu(x + bias)


SCHEMA = schema(
    "AddGelu",
    "y = gelu(x + bias), by the error function.",
    [formal("x", "T", "[..., width]"), formal("bias", "T", "[width]")],
    [formal("y", "T", "[..., width]")],
)


def body() -> onnx.FunctionProto:
    """The function body, standard operators only; runtimes fuse them where they can."""
    return function(
        "AddGelu (x, bias) => (y)",
        f"""
        shifted = Add(x, bias)
        {gelu("shifted", "y")}""",
    )


def gelu(x: str, y: str) -> str:
    """The statements that make y of x, in ONNX's text syntax. Gelu itself is younger than the bodies' opset."""
    return f"""
        root = Constant <value_float: float = 1.4142135381698608> ()
        whole = Constant <value_float: float = 1.0> ()
        half = Constant <value_float: float = 0.5> ()
        {y}_ratio = Div({x}, root)
        {y}_erf = Erf({y}_ratio)
        {y}_sum = Add({y}_erf, whole)
        {y}_twice = Mul({x}, {y}_sum)
        {y} = Mul({y}_twice, half)"""

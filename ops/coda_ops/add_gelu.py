"""``ai.coda::AddGelu``: a bias and the GELU behind it, fused.

Passes make it, so it has no torch operator.
"""

import onnx

from coda_ops.domain import formal, function, schema

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
        root = Constant <value = float {{1.4142135381698608}}> ()
        whole = Constant <value = float {{1.0}}> ()
        half = Constant <value = float {{0.5}}> ()
        {y}_ratio = Div({x}, root)
        {y}_erf = Erf({y}_ratio)
        {y}_sum = Add({y}_erf, whole)
        {y}_twice = Mul({x}, {y}_sum)
        {y} = Mul({y}_twice, half)"""

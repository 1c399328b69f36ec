"""How many tokens a layer routes at reduction factor r: the one place for the formula, used with and without torch."""

from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Count = TypeVar("Count", int, "Tensor")


def slot_count(tokens: Count, reduction: Fraction) -> Count:
    """ceil(tokens / reduction) in integers alone, so that torch, ONNX and C++ agree; 0 tokens give 0.

    Args:
        tokens: a number, or an integer tensor of them.
        reduction: r = p/q >= 1.
    """
    return (tokens * reduction.denominator + reduction.numerator - 1) // reduction.numerator

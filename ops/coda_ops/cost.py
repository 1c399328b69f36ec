"""Multiply-adds of a CoDA layer, after the table of costs in Lei et al. 2023 (section 4.4)."""

from fractions import Fraction

from coda_ops.capacity import slot_count


def multiply_adds(
    tokens: int, reduction: Fraction, *, attention: str, width: int, feed_forward: int, bottleneck: int
) -> int:
    """Of one layer for one sequence of valid tokens; norms and activations are not counted.

    Args:
        reduction: r; 1 is a dense layer with its adapter.
        attention: ``k_to_k`` or ``k_to_all``.
        bottleneck: of the adapter; 0 for none.
    """
    n, d, f = tokens, width, feed_forward
    heavy = 4 * d * d + 2 * d * f  # attention projections and feed-forward, for one token
    light = n * 2 * d * bottleneck
    if reduction == 1:
        return n * heavy + 2 * n * n * d + light
    k = slot_count(n, reduction)
    router = n * d
    if attention == "k_to_k":
        return k * heavy + 2 * k * k * d + light + router
    return k * (heavy - 2 * d * d) + n * 2 * d * d + 2 * k * n * d + light + router

"""Multiply-adds of a CoDA layer, after the table of costs in Lei et al. 2023 (section 4.4)."""

from fractions import Fraction

from coda_ops.capacity import slot_count


def multiply_adds(
    tokens: int,
    reduction: Fraction,
    *,
    attention: str,
    width: int,
    feed_forward: int,
    bottleneck: int,
    stand_in: int = 0,
    key_value_rank: int = 0,
    prefix: int = 0,
) -> int:
    """Of one layer for one sequence of valid tokens; norms and activations are not counted.

    Args:
        reduction: r; 1 is a dense layer with its adapter.
        attention: ``k_to_k`` or ``k_to_all``.
        bottleneck: of the adapter; 0 for none.
        stand_in: rank of the stand-in, beside which an adapter is for routed tokens alone; 0 for none.
        key_value_rank: of the keys and values of tokens that are not routed in k_to_all; 0 for exact ones.
        prefix: learned tokens, as keys and values, that every computed token attends to as well.
    """
    n, d, f = tokens, width, feed_forward
    heavy = 4 * d * d + 2 * d * f  # attention projections and feed-forward, for one token
    adapter = 2 * d * bottleneck
    if reduction == 1:
        return n * (heavy + adapter) + 2 * n * (n + prefix) * d
    k = slot_count(n, reduction)
    light = n * 2 * d * stand_in + k * adapter if stand_in else n * adapter
    router = n * d
    light += 2 * k * prefix * d
    if attention == "k_to_k":
        return k * heavy + 2 * k * k * d + light + router
    if key_value_rank:
        return k * heavy + n * 3 * d * key_value_rank + 2 * k * n * d + light + router
    return k * (heavy - 2 * d * d) + n * 2 * d * d + 2 * k * n * d + light + router

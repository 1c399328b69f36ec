"""Multiply-adds of a compiled model, after the table of costs in Lei et al. 2023 (section 4.4)."""

from dataclasses import replace
from fractions import Fraction

from coda_ops.capacity import slot_count
from coda_targets.manifest import LayerInfo, Manifest


def layer_multiply_adds(layer: LayerInfo, tokens: int, width: int, feed_forward: int) -> int:
    """Multiply-adds of one layer for one sequence of valid tokens; norms and activations are not counted."""
    n, d, f, b = tokens, width, feed_forward, layer.bottleneck
    heavy = 4 * d * d + 2 * d * f  # attention projections and feed-forward, for one token
    light = n * 2 * d * b
    r = Fraction(layer.reduction)
    if r == 1:
        return n * heavy + 2 * n * n * d + light
    k = slot_count(n, r)
    router = n * d
    if layer.attention == "k_to_k":
        return k * heavy + 2 * k * k * d + light + router
    return k * (heavy - 2 * d * d) + n * 2 * d * d + 2 * k * n * d + light + router


def multiply_adds(manifest: Manifest, tokens: int) -> int:
    """Multiply-adds of all layers."""
    return sum(layer_multiply_adds(x, tokens, manifest.width, manifest.feed_forward) for x in manifest.layers)


def dense_multiply_adds(manifest: Manifest, tokens: int) -> int:
    """The same for the dense adapter, every layer at r = 1."""
    dense = [replace(x, reduction="1", slots=manifest.max_tokens) for x in manifest.layers]
    return sum(layer_multiply_adds(x, tokens, manifest.width, manifest.feed_forward) for x in dense)

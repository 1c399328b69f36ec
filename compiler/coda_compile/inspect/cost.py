"""Multiply-adds of a compiled model."""

from dataclasses import replace
from fractions import Fraction

from coda_ops import cost
from coda_targets.manifest import LayerInfo, Manifest


def layer_multiply_adds(layer: LayerInfo, tokens: int, width: int, feed_forward: int) -> int:
    """Multiply-adds of one layer for one sequence of valid tokens, learned ones in front of them not counted."""
    return cost.multiply_adds(
        tokens + layer.prompt,
        Fraction(layer.reduction),
        attention=layer.attention,
        width=width,
        feed_forward=feed_forward,
        bottleneck=layer.bottleneck,
        stand_in=layer.stand_in,
        key_value_rank=layer.key_value_rank,
        prefix=layer.prefix,
    )


def multiply_adds(manifest: Manifest, tokens: int) -> int:
    """Multiply-adds of all layers."""
    return sum(layer_multiply_adds(x, tokens, manifest.width, manifest.feed_forward) for x in manifest.layers)


def dense_multiply_adds(manifest: Manifest, tokens: int) -> int:
    """The same for the dense model, every layer at r = 1."""
    dense = [replace(x, reduction="1", slots=manifest.signature.max_length) for x in manifest.layers]
    return sum(layer_multiply_adds(x, tokens, manifest.width, manifest.feed_forward) for x in dense)


def fewer(manifest: Manifest) -> float:
    """The dense model's multiply-adds over the model's, at its longest input; 1 where its layers are not known."""
    n = manifest.signature.max_length
    return dense_multiply_adds(manifest, n) / multiply_adds(manifest, n) if manifest.layers else 1.0

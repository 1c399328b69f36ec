"""Where routing pays on a GPU: an estimate by arithmetic, for a card that need not be here.

A kernel takes as long as its products, its traffic or its launch, whichever is longest (the roofline model, Williams et
al. 2009). What is summed are the kernels that onnxruntime's CUDA provider launches for a compiled model, as the
stand-in CUDA runtime of our tests counts them (``tests/cuda_stand_in``), with the native kernels. Nothing here was
measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from coda_compile.inspect.cards import Card
from coda_ops.capacity import slot_count
from coda_targets.manifest import LayerInfo, Manifest

LAUNCH = 2e-6  # seconds of a kernel at least, replayed from a CUDA graph
ROUTE = 12e-6  # of the soft top-k at least: one block a row, whose iterations wait for each other
REACHED_PEAK, REACHED_BANDWIDTH = 0.4, 0.9  # by products as small as an encoder's; by copies
_MOST_BATCH = 256
_EMBEDDING_KERNELS, _POOLING_KERNELS, _HEAD_KERNELS = 6, 3, 13  # of a model beside its layers
_MASK_KERNELS = 2  # of slots, for all layers of one r together
_PLACE_KERNELS = 5  # that say where exact keys and values lie among thin ones


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        flops: floating-point operations.
        bytes: that it reads and writes.
        least: seconds that it takes however little it does.
    """

    flops: float
    bytes: float
    least: float = LAUNCH


def seconds(kernels: list[Kernel], card: Card, *, half: bool) -> float:
    """Seconds of kernels, one after the other.

    Args:
        half: products of float16 on tensor cores, instead of float32.
    """
    peak = REACHED_PEAK * (card.half if half else card.single)
    bandwidth = REACHED_BANDWIDTH * card.bandwidth
    return sum(max(one.flops / peak, one.bytes / bandwidth, one.least) for one in kernels)


def kernels_of(manifest: Manifest, batch: int, tokens: int, *, half: bool, dense: bool = False) -> list[Kernel]:
    """What one run of a model launches, all tokens valid.

    Args:
        dense: of the dense model, every layer at r = 1.
    """
    size = 2 if half else 4
    layers = [replace(layer, reduction="1") for layer in manifest.layers] if dense else list(manifest.layers)
    over_tokens = Kernel(0, 2 * size * batch * tokens * manifest.width)
    made = [over_tokens] * (_EMBEDDING_KERNELS + _POOLING_KERNELS) + [Kernel(0, 0)] * _HEAD_KERNELS
    made += [Kernel(0, 0)] * (_MASK_KERNELS * len({layer.reduction for layer in layers} - {"1"}))
    for layer in layers:
        made += _layer(layer, batch, tokens, manifest.width, manifest.feed_forward, size)
    return made


def speed_up(manifest: Manifest, card: Card, batch: int, tokens: int, *, half: bool) -> float:
    """Seconds of the dense model over the model's."""
    dense, own = (kernels_of(manifest, batch, tokens, half=half, dense=dense) for dense in (True, False))
    return seconds(dense, card, half=half) / seconds(own, card, half=half)


def break_even(manifest: Manifest, card: Card, *, half: bool) -> int | None:
    """Tokens of a batch from which on a model beats the dense model; ``None`` where it does not up to 256 sequences.

    Batches grow first in the length of one sequence, up to the longest that the model takes, and then in sequences.
    """
    longest = manifest.signature.max_length
    shapes = [(1, length) for length in range(min(8, longest), longest, 8)]
    shapes += [(batch, longest) for batch in range(1, _MOST_BATCH + 1)]
    found = None
    for batch, tokens in reversed(shapes):
        if speed_up(manifest, card, batch, tokens, half=half) <= 1:
            break
        found = batch * tokens
    return found


def _layer(layer: LayerInfo, batch: int, tokens: int, width: int, feed_forward: int, size: int) -> Iterator[Kernel]:
    """Kernels of one layer.

    Args:
        size: bytes of an element.
    """
    routed = layer.reduction != "1"
    slots = slot_count(tokens, Fraction(layer.reduction)) if routed else tokens
    keys = tokens if routed and layer.attention != "k_to_k" else slots
    stand_in, thin = (layer.stand_in, layer.key_value_rank) if routed else (0, 0)
    n, k, m = batch * tokens, batch * slots, batch * keys
    d, f = width, feed_forward

    def product(rows: int, inputs: int, outputs: int) -> Kernel:
        return Kernel(2 * rows * inputs * outputs, size * (rows * (inputs + outputs) + inputs * outputs))

    def moved(elements: int) -> Kernel:
        return Kernel(0, size * elements)

    if routed:
        yield moved(n * d)  # scores
        yield Kernel(0, (size + 4) * n)  # to float32
        yield Kernel(0, 5 * n + 13 * k, ROUTE)
        yield moved(2 * k * d)  # gather
        yield moved(2 * n * d + 2 * k * d)  # scatter, with the residual
    if stand_in:
        yield from (product(n, d, stand_in), product(n, stand_in, d))
        yield moved(2 * n * d)  # its bias
        yield moved(3 * n * d)  # residual
        yield moved(2 * k * d)  # gather, of what is put back in its place
    if thin:
        yield from (product(k, d, d) for _ in range(3))  # query, exact key and value
        yield from (moved(2 * k * d) for _ in range(3))  # their bias
        yield from (product(n, d, thin), product(n, thin, 2 * d))
        yield moved(4 * n * d)  # their bias
        yield moved(4 * k * d)  # the exact ones side by side
        yield from (Kernel(0, 0) for _ in range(_PLACE_KERNELS))
        yield moved(6 * k * d)  # those in use
        yield moved(4 * n * d + 2 * k * d)  # scatter
    else:
        yield _joined(product(k, d, d), product(m, d, 2 * d))  # query, key and value
        yield moved(2 * (k + 2 * m) * d)  # their bias
    yield moved(2 * (k + 2 * m) * d)  # their split
    yield moved(batch * slots * keys)  # the mask
    yield Kernel(4 * batch * slots * keys * d, size * (2 * (k + m) * d + batch * slots * keys))  # attention
    yield product(k, d, d)
    yield moved(2 * k * d)
    yield moved(3 * k * d)  # residual and norm
    yield product(k, d, f)
    yield moved(2 * k * f)  # bias and GELU
    yield product(k, f, d)
    yield moved(2 * k * d)
    yield moved(3 * k * d)  # residual and norm
    if layer.bottleneck:
        rows = k if stand_in else n
        yield product(rows, d, layer.bottleneck)
        yield moved(2 * rows * layer.bottleneck)  # ReLU
        yield product(rows, layer.bottleneck, d)
        yield moved(3 * rows * d)  # residual


def _joined(*kernels: Kernel) -> Kernel:
    """Several products that run as one."""
    return Kernel(sum(one.flops for one in kernels), sum(one.bytes for one in kernels))

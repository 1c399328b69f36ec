"""What onnxruntime fused in a model, and what it left apart for which reason.

A reason is a condition of onnxruntime's own fusion that the optimised graph is seen to break. Where none is seen, the
reason says so.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from coda_compile.inspect.profile import Place
from coda_ops import RUNTIME_DOMAIN

UNKNOWN = "onnxruntime does not say why"


@dataclass(frozen=True)
class Missed:
    """A fusion that a layer could have and has not.

    Attributes:
        fusion: the operator that it would make.
        count: places in the layer.
        reason: the condition that is not met, with the value that breaks it.
    """

    fusion: str
    count: int
    reason: str


class Graph:
    """An optimised graph with the questions that the conditions ask of it."""

    def __init__(self, graph: onnx.GraphProto, places: dict[str, Place]) -> None:
        self.places = places
        self.nodes = list(graph.node)
        self.constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}  # with their ranks
        self.outputs = {output.name for output in graph.output}
        self._shapes = {value.name: _shape(value) for value in graph.value_info}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that computes a tensor, ``None`` for inputs and weights."""
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return self._readers[tensor]

    def shape(self, tensor: str) -> tuple[int | str, ...] | None:
        """Of a computed tensor, with names for dynamic axes; ``None`` where onnxruntime could not infer it."""
        return self._shapes.get(tensor)

    def origin(self, tensor: str, through: tuple[str, ...]) -> onnx.NodeProto | None:
        """The first node above a tensor that is none of some operators, followed along their first inputs."""
        node = self.producer(tensor)
        while node is not None and node.op_type in through:
            node = self.producer(node.input[0])
        return node


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim)


def fired(graph: Graph) -> dict[int | None, Counter[str]]:
    """Fused operators by layer."""
    counts: dict[int | None, Counter[str]] = defaultdict(Counter)
    for node in graph.nodes:
        place = graph.places.get(node.name)
        if place is not None and (node.domain == RUNTIME_DOMAIN or "/MatMulAddFusion" in node.name):
            counts[place.layer][node.op_type] += 1
    return counts


def missed(graph: Graph) -> dict[int | None, list[Missed]]:
    """Fusions that did not happen, by layer, those of one reason together."""
    counts: Counter[tuple[int | None, str, str]] = Counter()
    for node in graph.nodes:
        place = graph.places.get(node.name)
        if place is not None:
            for fusion, check in _CHECKS.get(node.op_type, ()):
                counts.update((place.layer, fusion, reason) for reason in check(graph, node))
    found: dict[int | None, list[Missed]] = defaultdict(list)
    for (layer, fusion, reason), count in counts.items():
        found[layer].append(Missed(fusion, count, reason))
    return found


def _attention(graph: Graph, softmax: onnx.NodeProto) -> Iterator[str]:
    """One operator for the whole of attention: it begins at a LayerNormalization that feeds 3 MatMul and 1 Add."""
    product = graph.origin(softmax.input[0], ("Add", "Mul", "Div", "Where", "Cast"))
    if product is None or product.op_type not in ("MatMul", "FusedMatMul"):
        return
    projection = graph.origin(product.input[0], ("Transpose", "Reshape", "Add", "Mul", "Div"))
    if projection is None or projection.op_type not in ("MatMul", "Gemm"):
        yield UNKNOWN
        return
    source = graph.producer(projection.input[0])
    name = "an input" if source is None else source.op_type
    if source is None or source.op_type not in ("LayerNormalization", "SkipLayerNormalization"):
        yield f"it must begin at a LayerNormalization, and the projections read {_article(name)}"
        return
    products = sum(reader.op_type == "MatMul" for reader in graph.readers(projection.input[0]))
    yield UNKNOWN if products == 3 else f"the {name} before it must feed 3 MatMul, and feeds {products}"


def _skip_layer_norm(graph: Graph, norm: onnx.NodeProto) -> Iterator[str]:
    """A residual sum and its norm in one: the sum must be read by the norm alone."""
    total = graph.producer(norm.input[0])
    if total is None or total.op_type != "Add":
        yield f"it takes an Add, and this norm reads {_article('an input' if total is None else total.op_type)}"
        return
    others = sorted({reader.op_type for reader in graph.readers(total.output[0])} - {norm.op_type})
    sides = [graph.shape(name) for name in total.input]
    if others:
        yield f"the norm alone may read the sum, and {', '.join(others)} read it too"
    elif total.output[0] in graph.outputs:
        yield "the norm alone may read the sum, and it is an output of the model"
    elif None not in sides and sides[0] != sides[1]:
        yield "both sides of the sum must have one shape, and one is broadcast here"
    else:
        yield UNKNOWN


def _bias_gelu(graph: Graph, gelu: onnx.NodeProto) -> Iterator[str]:
    """A bias and the Gelu after it in one: the sum must be read by the Gelu alone."""
    total = graph.producer(gelu.input[0])
    if total is None or total.op_type != "Add" or not any(graph.constants.get(name) == 1 for name in total.input):
        return
    readers = len(graph.readers(total.output[0]))
    yield f"the Gelu alone may read the sum, and it has {readers} readers" if readers > 1 else UNKNOWN


def _gemm(graph: Graph, product: onnx.NodeProto) -> Iterator[str]:
    """A product with weights and the bias after it in one: more than two dimensions must be fixed ones."""
    readers = graph.readers(product.output[0])
    if graph.constants.get(product.input[1]) != 2 or len(readers) != 1 or readers[0].op_type != "Add":
        return
    if any(graph.constants.get(name) == 1 for name in readers[0].input):
        shape = graph.shape(product.input[0])
        fixed = shape is not None and all(isinstance(size, int) and size > 0 for size in shape)
        yield UNKNOWN if fixed else "its input must have a fixed shape, and batch and sequence are dynamic here"


def _article(name: str) -> str:
    return name if name.startswith("an ") else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


_Check = Callable[[Graph, onnx.NodeProto], Iterator[str]]
# What each operator that was left alone could have become.
_CHECKS: dict[str, tuple[tuple[str, _Check], ...]] = {
    "Softmax": (("Attention", _attention),),
    "LayerNormalization": (("SkipLayerNormalization", _skip_layer_norm),),
    "Gelu": (("BiasGelu", _bias_gelu),),
    "MatMul": (("Gemm", _gemm),),
}

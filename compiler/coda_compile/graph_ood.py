"""An out-of-distribution detector behind the logits of a graph that another exporter wrote."""

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from coda_compile.errors import CompileError
from coda_compile.export import OOD_OUTPUTS, quiet
from coda_compile.ood import Classifier
from coda_compile.sources.onnx_graph import CLASSES, Graph
from coda_models.ood import OodDetector
from coda_targets.bundle import Arrays
from coda_targets.routing import ROLE_TAG


def features_of(graph: Graph) -> str:
    """The value that the classifier's last product multiplies: what stands for a text.

    Raises:
        CompileError: the logits are no product with a weight, and a bias.
    """
    value = next(one for one in graph.model.graph.outputs if one.name == CLASSES)
    node = value.producer()
    if node is not None and node.op_type == "Add":
        node = next((one.producer() for one in node.inputs if one is not None and one.producer() is not None), None)
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.inputs[0] is None:
        raise CompileError(f"{graph.path} computes {CLASSES} by no product: out-of-distribution scores read its input")
    return str(node.inputs[0].name)


def classifier(graph: Graph, run: Callable[[Arrays], Arrays], features: str) -> Classifier:
    """The graph as detectors are fitted on it; ``run`` gives its features too."""

    def answer(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = run({name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(found[features]), torch.from_numpy(found[CLASSES])

    return Classifier(graph.task, graph.labels, graph.inputs, answer)


def scored(detector: OodDetector, found: Arrays, features: str) -> Arrays:
    """Outputs of the original, with what the detector says of them."""
    with torch.inference_mode():
        score, out = detector(torch.from_numpy(found[features]), torch.from_numpy(found[CLASSES]))
    outputs = {name: array for name, array in found.items() if name != features}
    return outputs | dict(zip(OOD_OUTPUTS, (score.numpy(), out.numpy()), strict=True))


def append(graph: ir.Graph, detector: OodDetector, features: str, *, width: int, labels: int, opset: int) -> None:
    """Have a graph compute what a detector says, in place, as two more outputs."""
    example = (torch.zeros(2, width), torch.zeros(2, labels))
    batch = torch.export.Dim.DYNAMIC
    with quiet():
        program = torch.onnx.export(
            detector,
            example,
            dynamo=True,
            dynamic_shapes=({0: batch}, {0: batch}),
            output_names=list(OOD_OUTPUTS),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    part = program.model.graph
    for value in (*part.inputs, *part.initializers.values(), *(one for node in part for one in node.outputs)):
        if value.name not in OOD_OUTPUTS:
            value.name = f"ood.{value.name}"
    values = {value.name: value for node in graph for value in node.outputs}
    for mine, theirs in zip(part.inputs, (values[features], values[CLASSES]), strict=True):
        ir.convenience.replace_all_uses_with(mine, theirs)
    for value in list(part.initializers.values()):
        part.initializers.pop(str(value.name))
        graph.register_initializer(value)
    outputs = list(part.outputs)
    part.outputs.clear()
    nodes = list(part)
    part.remove(nodes)
    for node in nodes:
        node.name = f"ood.{node.name}"
        node.metadata_props[ROLE_TAG] = "ood"
    graph.extend(nodes)
    for value in outputs:
        value.shape = ir.Shape(["batch"])
        graph.outputs.append(value)

"""An out-of-distribution detector behind the logits of a graph that another exporter wrote."""

from collections.abc import Callable, Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from coda_compile.errors import CompileError
from coda_compile.export import OOD_OUTPUTS, quiet
from coda_compile.prepare.fit_ood import Classifier
from coda_compile.sources.onnx_graph import CLASSES, Graph
from coda_models.ood import OodDetector
from coda_targets.bundle import Arrays
from coda_targets.routing import ROLE_TAG

Run = Callable[[Arrays], Arrays]


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


def classifier(graph: Graph, run: Run, features: str) -> Classifier:
    """The graph as detectors are fitted on it; ``run`` gives its features too."""

    def answer(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = run({name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(found[features]), torch.from_numpy(found[CLASSES])

    return Classifier(graph.task, graph.labels, graph.logits, graph.signature, answer)


def scoring(graph: Graph, run: Run, features: str, detector: OodDetector) -> Run:
    """The original as the compiled model should be: its own outputs, and what the detector says of them."""
    own = [str(value.name) for value in graph.model.graph.outputs]

    def scored(inputs: Arrays) -> Arrays:
        found = run(inputs)
        with torch.inference_mode():
            said = detector(torch.from_numpy(found[features]), torch.from_numpy(found[CLASSES]))
        outputs = {name: found[name] for name in own}
        return outputs | {name: tensor.numpy() for name, tensor in zip(OOD_OUTPUTS, said, strict=True)}

    return scored


def append(graph: Graph, run: Run, features: str, detector: OodDetector) -> None:
    """Have a graph compute what a detector says, in place, as two more outputs."""
    found = run(graph.signature.random(2, 1))
    example = (torch.from_numpy(found[features]), torch.from_numpy(found[CLASSES]))
    whole = graph.model.graph
    batch = torch.export.Dim.DYNAMIC
    with quiet():
        program = torch.onnx.export(
            detector,
            example,
            dynamo=True,
            dynamic_shapes=({0: batch}, {0: batch}),
            output_names=list(OOD_OUTPUTS),
            opset_version=graph.model.opset_imports[""],
            verbose=False,
        )
    assert program is not None
    part = program.model.graph
    for value in (*part.inputs, *part.initializers.values(), *(one for node in part for one in node.outputs)):
        if value.name not in OOD_OUTPUTS:
            value.name = f"ood.{value.name}"
    values = {value.name: value for node in whole for value in node.outputs}
    for mine, theirs in zip(part.inputs, (values[features], values[CLASSES]), strict=True):
        ir.convenience.replace_all_uses_with(mine, theirs)
    for value in list(part.initializers.values()):
        part.initializers.pop(str(value.name))
        whole.register_initializer(value)
    outputs = list(part.outputs)
    part.outputs.clear()
    nodes = list(part)
    part.remove(nodes)
    for node in nodes:
        node.name = f"ood.{node.name}"
        node.metadata_props[ROLE_TAG] = "ood"
    whole.extend(nodes)
    for value in outputs:
        value.shape = ir.Shape(["batch"])
        whole.outputs.append(value)

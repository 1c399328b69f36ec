"""Constants of function bodies and bundles are tensors: onnxslim, float16 converters and others read no other right."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import pytest

from coda_ops import DOMAIN
from coda_ops.catalogue import OPERATORS, Operator, find_operator
from coda_targets import Bundle

ROOT = Path(__file__).parents[2]
SETTINGS = {"iterations": 2, "epsilon_start": 0.5, "epsilon_decay": 0.7, "epsilon_final": 0.25}
OURS = [one for one in OPERATORS if one.domain == DOMAIN]
# An attribute that differs from node to node can stand in a body by its name alone, and a number is no tensor.
BY_NAME = {"Route": {"numerator", "denominator"}}


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from nodes_of(graph.node)


def not_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    """What constants hold that is no tensor."""
    for node in nodes_of(nodes):
        if node.op_type == "Constant":
            yield from (attribute for attribute in node.attribute if attribute.name not in ("value", "sparse_value"))


def offending(function: onnx.FunctionProto) -> list[str]:
    """Numbers in a body, and references that it has no need of."""
    allowed = BY_NAME.get(function.name, set())
    return [str(one) for one in not_tensors(function.node) if one.ref_attr_name not in allowed]


@pytest.mark.parametrize("operator", OURS, ids=lambda operator: operator.name)
def test_constants_of_bodies_are_tensors(operator: Operator):
    for runtime in ("", *operator.bodies):
        assert offending(operator.function_body(SETTINGS, runtime)) == []


def test_constants_of_a_bundle_are_tensors(compiled: Bundle):
    model = onnx.load(compiled.model_path)
    assert list(not_tensors(model.graph.node)) == []
    assert model.functions
    assert [what for function in model.functions for what in offending(function)] == []


@pytest.mark.parametrize("kind", ["int", "ints", "float", "floats", "string", "strings"])
def test_no_pass_writes_another(kind: str):
    """Passes lift constants out of the graph at last; what they are given may be read before."""
    wanted = f'"value_{kind}"'
    packages = [ROOT / package for package in ("ops", "compiler")]
    found = [path for package in packages for path in package.rglob("*.py") if wanted in path.read_text("utf-8")]
    assert found == []


@pytest.mark.parametrize("number", ["value_float: float = 1.0", "value_int: int = 1", "value_ints: ints = [1]"])
def test_another_constant_would_be_found(number: str):
    body = onnx.parser.parse_function(f'<opset_import: ["": 18]> F (x) => (y) {{ y = Constant <{number}> () }}')
    assert len(offending(body)) == 1


def test_the_exceptions_are_there():
    for name, references in BY_NAME.items():
        operator = find_operator(DOMAIN, name)
        assert operator is not None
        found = {one.ref_attr_name for one in not_tensors(operator.function_body(SETTINGS).node)}
        assert found == references

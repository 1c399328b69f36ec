"""The checker behind every backend: which operators a runtime takes, wherever in a model they stand."""

import onnx
import onnx_ir as ir
import pytest

from coda_compile.backends import get_backend
from coda_compile.errors import CompileError
from coda_ops import DOMAIN, RUNTIME_DOMAIN

GRAPH = """
<ir_version: 10, opset_import: ["" : {opset}, "{domain}" : 1]>
g (float[N, 4] x) => (float[N, 4] y) {{ y = {operator} (x) }}
"""
FUNCTION = """
<domain: "ai.coda", opset_import: ["" : 20, "com.microsoft" : 1]>
Own (a) => (b) { b = com.microsoft.Gelu (a) }
"""
BRANCH = """
<ir_version: 10, opset_import: ["" : 20, "elsewhere" : 1]>
g (float[N, 4] x, bool c) => (float[N, 4] y) {
  y = If (c) <
    then_branch = t () => (float[N, 4] p) { p = Relu (x) },
    else_branch = e () => (float[N, 4] q) { q = elsewhere.Relu (x) }
  >
}
"""


def graph(operator: str, domain: str = "other", opset: int = 20) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(GRAPH.format(operator=operator, domain=domain, opset=opset)))


def refused(name: str, model: ir.Model) -> str:
    with pytest.raises(CompileError) as caught:
        get_backend(name).check(model)
    return str(caught.value)


@pytest.mark.parametrize("name", ["cpu", "null", "cuda", "openvino", "tensorrt"])
def test_an_operator_of_no_known_domain_is_refused(name: str):
    assert refused(name, graph("elsewhere.Relu", "elsewhere")) == (
        f"target {name!r} knows no operator elsewhere::Relu, as node '' of the graph has it: "
        "use another target, or a model without it"
    )


@pytest.mark.parametrize("name", ["cpu", "null", "cuda", "openvino", "tensorrt"])
def test_a_standard_operator_is_taken_from_the_opset_that_has_it(name: str):
    assert "knows no operator Gelu of opset 19, as" in refused(name, graph("Gelu", opset=19))
    get_backend(name).check(graph("Gelu", opset=20))


@pytest.mark.parametrize("operator", ["com.microsoft.Gelu", "ai.onnx.ml.Normalizer"])
def test_onnxruntimes_own_providers_take_more_than_others(operator: str):
    domain, _, name = operator.rpartition(".")
    for target in ("cpu", "null"):
        get_backend(target).check(graph(operator, domain))
    for target in ("openvino", "tensorrt"):
        assert f"target {target!r} knows no operator {domain}::{name}" in refused(target, graph(operator, domain))


def test_an_operator_with_a_body_is_taken_as_far_as_its_body_is():
    model = graph(f"{DOMAIN}.Own", DOMAIN)
    assert f"{DOMAIN}::Own" in refused("cpu", model)
    body = ir.serde.deserialize_function(onnx.parser.parse_function(FUNCTION))
    model.functions[body.identifier()] = body
    get_backend("cpu").check(model)
    assert f"{RUNTIME_DOMAIN}::Gelu, as node '' of the body of Own has it" in refused("openvino", model)


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_branches_are_looked_at_too(name: str):
    assert "knows no operator elsewhere::Relu" in refused(name, ir.from_proto(onnx.parser.parse_model(BRANCH)))

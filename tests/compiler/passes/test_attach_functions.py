"""Function bodies for the operators in use, and for those alone."""

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest

from coda_compile.errors import CompileError
from coda_compile.passes.attach_functions import AttachFunctions
from coda_ops import DOMAIN, VERSION


def names(model: ir.Model) -> list[str]:
    return sorted(name for _, name, _ in model.functions)


def test_adds_exactly_the_functions_used(raw: ir.Model):
    assert names(raw) == []
    assert AttachFunctions()(raw).modified
    assert names(raw) == ["Adapter", "PutTokens", "Route", "TakeTokens"]
    assert {domain for domain, _, _ in raw.functions} == {DOMAIN}
    assert raw.graph.opset_imports[DOMAIN] == VERSION


def test_operators_that_are_not_used_get_no_body():
    model = ir.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 20, "{DOMAIN}" : {VERSION}]>'
            " agraph (float[1, N, 4] x, int64[1, K] i) => (float[1, K, 4] y)"
            f" {{ y = {DOMAIN}.TakeTokens(x, i) }}"
        )
    )
    assert AttachFunctions()(model).modified
    assert names(model) == ["TakeTokens"]


def test_bodies_of_a_runtimes_own_take_the_place_of_everyones(raw: ir.Model):
    other = ir.from_proto(ir.to_proto(raw))
    AttachFunctions()(raw)
    assert AttachFunctions(runtime="openvino")(other).modified
    assert names(other) == names(raw)
    written = {
        model: {name: ir.to_proto(one) for (_, name, _), one in model.functions.items()} for model in (raw, other)
    }
    assert {name for name in names(raw) if written[raw][name] != written[other][name]} == {
        "Route",
        "TakeTokens",
        "PutTokens",
    }


def test_a_second_run_changes_nothing(raw: ir.Model):
    AttachFunctions()(raw)
    before = {name: ir.to_proto(body).SerializeToString() for name, body in raw.functions.items()}
    assert not AttachFunctions()(raw).modified
    assert {name: ir.to_proto(body).SerializeToString() for name, body in raw.functions.items()} == before


def test_graph_without_coda_is_left_alone(plain: Callable[[], ir.Model]):
    model = plain()
    before = ir.to_proto(model).SerializeToString()
    assert not AttachFunctions()(model).modified
    assert ir.to_proto(model).SerializeToString() == before
    assert DOMAIN not in model.opset_imports


def test_function_and_model_import_one_opset(raw: ir.Model):
    AttachFunctions()(raw)
    assert {body.opset_imports[""] for body in raw.functions.values()} == {raw.opset_imports[""]} == {20}
    onnx.checker.check_model(ir.to_proto(raw), full_check=True)


def test_two_schedules_are_refused(raw: ir.Model):
    second = [node for node in raw.graph if node.op_type == "Route"][1]
    second.attributes["epsilon_final"] = ir.AttrFloat32("epsilon_final", 1.0)
    with pytest.raises(
        CompileError,
        match=r"^the Route nodes of this model have 2 settings of iterations, .*epsilon_final: all must share one$",
    ):
        AttachFunctions().call(raw)


def test_body_has_the_schedule_of_its_nodes(raw: ir.Model):
    for node in raw.graph:
        if node.op_type == "Route":
            node.attributes["iterations"] = ir.AttrInt64("iterations", 3)
            node.attributes["epsilon_final"] = ir.AttrFloat32("epsilon_final", 2.5)
    AttachFunctions()(raw)
    body = raw.functions[(DOMAIN, "Route", "")]
    assert sum(node.op_type == "ReduceLogSumExp" for node in body) == 3
    constants = {
        node.outputs[0].name: node.attributes["value"].value.numpy() for node in body if "value" in node.attributes
    }
    assert [constants[f"e{t}"] for t in range(3)] == pytest.approx([4.0, 2.8, 2.5], abs=1e-15)

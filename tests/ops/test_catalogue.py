"""The catalogue knows every operator file, and what it claims of each operator holds."""

import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import coda_ops
from coda_ops import DOMAIN, VERSION, cpu, native
from coda_ops.catalogue import OPERATORS, Operator, find_operator
from coda_ops.domain import BODY_OPSET

OURS = [operator for operator in OPERATORS if operator.domain == DOMAIN]
# Modules of the package that define no operator.
OTHERS = {
    "__init__",
    "capacity",
    "catalogue",
    "cost",
    "domain",
    "cpu",
    "distributions",
    "errors",
    "files",
    "foreign_json",
    "records",
}
named = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
ours = pytest.mark.parametrize("operator", OURS, ids=lambda operator: operator.name)


def attributes_of(operator: Operator) -> dict[str, int | float]:
    """Values that every kernel and body takes."""
    kinds = onnx.defs.OpSchema.AttrType
    return {
        name: {kinds.INT: 1, kinds.FLOAT: 0.5}[attribute.type]
        for name, attribute in operator.schema().attributes.items()
    }


def model_of(operator: Operator) -> onnx.ModelProto:
    """One node of the operator without a body, its inputs of the types of its schema and of any shape."""
    schema = operator.schema()

    def values(formals: list[onnx.defs.OpSchema.FormalParameter]) -> list[onnx.ValueInfoProto]:
        types = {one.type_param_str: one.allowed_type_strs[0] for one in schema.type_constraints}
        kinds = [types.get(one.type_str, one.type_str).removeprefix("tensor(").removesuffix(")") for one in formals]
        return [
            helper.make_tensor_value_info(one.name, onnx.TensorProto.DataType.Value(kind.upper()), None)
            for one, kind in zip(formals, kinds, strict=True)
        ]

    inputs, outputs = values(list(schema.inputs)), values(list(schema.outputs))
    names = [one.name for one in inputs], [one.name for one in outputs]
    node = helper.make_node(operator.name, *names, domain=operator.domain, **attributes_of(operator))
    imports = [helper.make_opsetid("", BODY_OPSET), helper.make_opsetid(operator.domain, VERSION)]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def test_every_file_has_a_record_and_every_record_a_file():
    files = {path.stem for path in Path(coda_ops.__file__).parent.glob("*.py")} - OTHERS
    assert {operator.file for operator in OPERATORS} == files


def test_every_file_has_its_tests():
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert {operator.file for operator in OPERATORS} <= tests


def test_no_operator_has_two_records():
    assert len({(operator.domain, operator.name) for operator in OPERATORS}) == len(OPERATORS)
    assert all(find_operator(operator.domain, operator.name) is operator for operator in OPERATORS)
    assert find_operator("", "MatMul") is None


@named
def test_it_has_a_schema_with_the_inputs_that_the_record_names(operator: Operator):
    schema = operator.schema()
    assert onnx.defs.has(operator.name, operator.domain)
    assert (schema.domain, schema.since_version) == (operator.domain, VERSION)
    assert {*operator.token_inputs, *operator.weights} <= set(range(len(schema.inputs)))
    assert set(operator.body_attributes) <= set(schema.attributes)
    for matmul in operator.quantised_matmuls:
        assert matmul.weight in operator.weights
        assert matmul.multiplied < len(schema.outputs if matmul.inside else schema.inputs)
        assert "int8" in schema.inputs[matmul.weight].type_str


@named
def test_what_is_quantised_shows(operator: Operator):
    kinds = [operator.schema().inputs[i].type_str for i in operator.weights]
    quantised = [kind for kind in kinds if kind in ("tensor(int8)", "tensor(uint8)")]
    assert len(operator.quantised_matmuls) == (len(quantised) if operator.domain == DOMAIN else 0)


@ours
def test_it_has_a_body_that_onnx_takes(operator: Operator):
    for runtime in ("", *operator.bodies):
        body = operator.function_body(attributes_of(operator), runtime)
        assert (body.domain, body.name) == (operator.domain, operator.name)
        assert list(body.input) == [one.name for one in operator.schema().inputs]
        assert list(body.output) == [one.name for one in operator.schema().outputs]
        onnx.checker.check_function(body)


def test_a_runtime_without_bodies_of_its_own_gets_the_usual_ones():
    put = find_operator(DOMAIN, "PutTokens")
    assert put is not None
    assert put.function_body({}, "cpu") == put.function_body({}) != put.function_body({}, "openvino")


@named
def test_its_torch_operator_takes_its_inputs_in_order_and_its_attributes_by_name(operator: Operator):
    if not operator.torch:
        return
    schema, arguments = operator.schema(), getattr(torch.ops.coda, operator.torch).default._schema.arguments
    tensors = [one.name for one in arguments if one.type.kind() == "TensorType"]
    assert tensors == [one.name for one in schema.inputs]
    assert {one.name for one in arguments} - set(tensors) == set(schema.attributes)


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
@ours
def test_the_library_has_the_kernels_that_are_claimed(operator: Operator):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(native.LIBRARIES["cpu"].path))
    said = ""
    try:
        content = model_of(operator).SerializeToString()
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a kernel that wants its weights to be constants
        said = str(error)
    claimed = "cpu" in operator.kernels
    assert claimed == (operator.name in native.LIBRARIES["cpu"].operators)
    multiplies_bytes = not operator.quantised_matmuls or cpu.allowed("avx2")  # which no kernel does on lesser machines
    assert ("is not a registered function/op" not in said) == (claimed and multiplies_bytes)


def test_the_facts_load_neither_torch_nor_onnx():
    command = "import sys, coda_ops.catalogue; print([name for name in ('torch', 'onnx') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

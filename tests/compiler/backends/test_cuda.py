"""The cuda target: its form of a graph, and what its provider has no kernel of, refused by name."""

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import parsed
from tests.conftest import tiny_coda

import coda_compile.backends
from coda_compile import CompileOptions, compile
from coda_compile.backends import get_backend
from coda_compile.errors import CompileError
from coda_compile.passes import operator_counts, run_passes
from coda_models import CodaConfig
from coda_ops import DOMAIN

BACKEND = get_backend("cuda")
TABLE = Path(coda_compile.backends.__file__).with_name("cuda_kernels.json")


def refused(model: ir.Model) -> str:
    with pytest.raises(CompileError) as caught:
        BACKEND.check(model)
    return str(caught.value)


@pytest.mark.parametrize("half", [False, True])
def test_its_graph_has_the_operators_that_kernels_or_the_provider_compute(raw: ir.Model, half: bool):
    run_passes(raw, BACKEND.passes(half=half))
    ours = {name.split("::")[1]: count for name, count in operator_counts(raw).items() if name.startswith(DOMAIN)}
    assert ours == {"Route": 2, "TakeTokens": 2, "PutDifference": 2, "SelfAttention": 2, "Adapter": 2}
    assert operator_counts(raw)["LayerNormalization"] == 5
    assert operator_counts(raw)["Gelu"] == 2
    BACKEND.check(raw)


def test_no_body_of_route_reads_the_number_of_tokens_on_the_device(raw: ir.Model):
    """A copy from the host in every run, which no CUDA graph can hold."""
    run_passes(raw, BACKEND.passes())
    body = raw.functions[(DOMAIN, "Route", "")]
    (tokens,) = (node.outputs[0] for node in body if node.op_type == "Shape")
    assert [user.op_type for user, _ in tokens.uses()] == ["Mul"]  # on the way to the number of slots


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_compiles_and_verifies_without_a_gpu(precision: str, tmp_path: Path):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    bundle = compile(model, CompileOptions(target="cuda", precision=precision), output=tmp_path / "bundle")
    assert bundle.variant.session.providers[0] == "CUDAExecutionProvider"
    assert bundle.manifest.layers


@pytest.mark.parametrize(
    ("body", "lacks"),
    [
        ("c = Cast <to: int = 9> (x) w = Where(c, c, c) y = Cast <to: int = 1> (w)", "Where for bool"),
        ("y = Celu(x)", "Celu"),
        ("y = com.microsoft.Nothing(x)", "com.microsoft::Nothing"),
        ("d = Cast <to: int = 11> (x) a = Acos(d) y = Cast <to: int = 1> (a)", "Acos"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(body: str, lacks: str):
    model = parsed(f"g (float[N] x) => (float[N] y) {{ {body} }}", shapes=True)
    assert refused(model).startswith(f"target 'cuda' has no kernel of {lacks}, as node ")
    assert refused(model).endswith(": use another target, or a model without it")


def test_half_may_lack_a_kernel_that_float_has():
    text = "g ({0}[N] n) => ({0}[M] y) {{ a = ReduceMax <keepdims: int = 0> (n) y = Range(a, a, a) }}"
    BACKEND.check(parsed(text.format("float"), shapes=True))
    assert "no kernel of Range for bfloat16" in refused(half_range())


def half_range() -> ir.Model:
    """Range of a type that the standard does not even have there."""
    model = parsed("g (float a) => (float[M] y) { y = Range(a, a, a) }")
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    return model


def test_bodies_are_looked_into_with_the_types_that_they_are_called_with():
    body = onnx.parser.parse_function(
        '<domain: "ai.coda", opset_import: ["" : 20]> Own (a) => (b) { b = CumSum (a, a) }'
    )
    model = parsed("g (bfloat16[N] x) => (bfloat16[N] y) { y = ai.coda.Own(x) }")
    model.functions[(DOMAIN, "Own", "")] = ir.serde.deserialize_function(body)
    assert "no kernel of CumSum for bfloat16" in refused(model)


def test_arithmetic_on_sizes_may_stay_on_the_host():
    text = "g (float[N] x) => (int64[1] y) {{ n = Shape(x) {} }}"
    BACKEND.check(parsed(text.format("y = BitwiseAnd(n, n)"), shapes=True))
    beside = "g (int64[N] x) => (int64[N] y) { y = BitwiseAnd(x, x) }"
    assert "no kernel of BitwiseAnd" in refused(parsed(beside, shapes=True))


def test_the_table_says_where_it_is_from():
    table = json.loads(TABLE.read_text("utf-8"))
    assert table["source"].startswith("onnxruntime-gpu ")
    kernels = table["kernels"]
    assert set(kernels) == {"", "com.microsoft"}
    assert "float16" in kernels["com.microsoft"]["SkipLayerNormalization"]["T"]
    assert "bfloat16" not in kernels[""]["TopK"]["T"]
    assert all(onnx.defs.has(name, BACKEND.opset, "") for name in kernels[""])

"""Graphs in float16: what stays float32, where casts stand, and that they compute what torch does with such weights."""

from collections import Counter
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tests.compiler.passes.graphs import inputs_of, outputs, parsed, serialized
from tests.conftest import TINY, tiny_coda
from tests.exporting import export

from coda_compile.backends import get_backend
from coda_compile.errors import CompileError
from coda_compile.export import output_names
from coda_compile.passes import run_passes
from coda_compile.passes.convert_to_half import ConvertToHalf
from coda_compile.precision import get_precision
from coda_models import CodaConfig, CodaModel
from coda_models.ood import FromLogits, Mahalanobis, OodDetector
from coda_models.sentence import SentenceModule
from coda_ops import DOMAIN
from coda_targets.routing import LAYER_TAG, ROLE_TAG

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
CUDA = get_backend("cuda")
MODULES = (SentenceModule("Dense", 64, 24, bias=True, activation="GELU"), SentenceModule("Normalize"))


def halved(model: CodaModel, *, pack: bool = False) -> ir.Model:
    """A model with weights of float16, as the cuda target compiles it."""
    quantise = get_precision("fp16").quantise
    assert quantise is not None
    quantise(model, (), True)
    compiled = export(model, opset=20)
    run_passes(compiled, CUDA.passes(half=True, pack=pack))
    CUDA.check(compiled)
    onnx.checker.check_model(ir.to_proto(compiled), full_check=True)
    return compiled


KINDS: dict[str, dict[str, Any]] = {
    "first token": {},
    "k to all": {"attention": "k_to_all"},
    "tokens": {"task": "token-classification"},
    "sentences": {"task": "feature-extraction", "pooling": ("weightedmean", "max"), "modules": MODULES},
}


@cache
def _routed(family: str, kind: str) -> onnx.ModelProto:
    return ir.to_proto(halved(tiny_coda(family, CodaConfig(reduction=2, **KINDS[kind]))))


def routed(family: str, kind: str = "first token") -> ir.Model:
    """One of its own for each test."""
    return ir.from_proto(_routed(family, kind))


def casts(model: ir.Model) -> list[tuple[ir.Value | None, ir.DataType | None]]:
    """What is cast between the two types, and to which."""
    found = [node for node in model.graph if node.op_type == "Cast"]
    kinds = [(node.inputs[0], node.outputs[0].dtype) for node in found]
    return [(value, dtype) for value, dtype in kinds if value is not None and {value.dtype, dtype} == {FLOAT, HALF}]


def same(model: CodaModel, compiled: ir.Model) -> None:
    """Outputs are torch's, and float32."""
    feed = inputs_of(model)
    with torch.inference_mode():
        wanted = model(**{name: torch.from_numpy(array) for name, array in feed.items()})
    mask = feed[model.signature.role("mask").name].astype(bool)
    for name, value in zip(output_names(model), outputs(compiled, feed), strict=True):
        expected = getattr(wanted, name).numpy()
        assert value.dtype == expected.dtype
        if value.dtype == np.float32:
            value, expected = (x[mask] if x.ndim == 3 else x for x in (value, expected))
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-2 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm", "mpnet"])
def test_stand_ins_and_thin_keys_compute_in_float16(family: str):
    config = CodaConfig(reduction=2, attention="k_to_all", stand_in=4, key_value_rank=6)
    made = halved(model := tiny_coda(family, config))
    by_role = {node.metadata_props[ROLE_TAG]: set[ir.DataType | None]() for node in made.graph}
    for node in made.graph:
        by_role[node.metadata_props[ROLE_TAG]].update(value.dtype for value in node.outputs)
    assert by_role["stand_in"] == by_role["key_value"] == {HALF}
    assert {node.outputs[0].dtype for node in made.graph if node.op_type == "SetTokens"} == {HALF}
    assert len(casts(made)) <= 2 + 1
    model.set_reduction(1)
    same(model, halved(model))


@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("bert", kind) for kind in KINDS), *zip(sorted({*TINY} - {"bert"}), cycle(KINDS), strict=False)],
)
def test_every_family_computes_in_float16(family: str, kind: str):
    compiled = routed(family, kind)
    by_role = dict[str, Counter[Any]]()
    for node in compiled.graph:
        kinds = by_role.setdefault(node.metadata_props[ROLE_TAG], Counter())
        kinds.update(value.dtype for value in node.outputs if value.dtype in (FLOAT, HALF))
    for role in ("embeddings", "attention", "feed_forward", "adapter", "norm"):
        assert by_role[role][HALF], role
        assert not by_role[role][FLOAT], role
    assert not by_role["router"][HALF]
    routes = [node for node in compiled.graph if node.op_type == "Route"]
    assert len(routes) == 2
    assert all(
        route.inputs[0] is not None and route.inputs[0].dtype == route.outputs[1].dtype == FLOAT for route in routes
    )
    assert all(value.dtype != HALF for value in (*compiled.graph.inputs, *compiled.graph.outputs))
    made = casts(compiled)
    assert len(set(made)) == len(made)  # nothing is cast twice
    assert all(dtype == FLOAT for _, dtype in made)  # and nothing back
    assert len(made) <= 2 + 1  # for each router, and for what follows the layers
    matrices = [v for v in compiled.graph.initializers.values() if v.dtype == FLOAT and v.shape and v.shape.rank() > 1]
    readers = {node.metadata_props[ROLE_TAG] for value in matrices for node, _ in value.uses()}
    assert readers <= {"router", "head"}


def test_answers_are_torchs(family: str):
    """Of a dense model, where no rounding can send a token another way."""
    model = tiny_coda(family, CodaConfig(reduction=1))
    same(model, halved(model))


@pytest.mark.parametrize("method", ["energy", "mahalanobis"])
def test_a_detector_stays_float32(method: str):
    model = tiny_coda("bert", CodaConfig(reduction=1))
    torch.manual_seed(0)
    score = FromLogits(method) if method == "energy" else Mahalanobis(*map(torch.randn, ((32,), (32, 32), (3, 32))))
    model.ood = OodDetector(method, score, 1.0, 0.95).eval()
    compiled = halved(model)
    assert not [n for n in compiled.graph if n.metadata_props[ROLE_TAG] == "ood" and n.outputs[0].dtype == HALF]
    same(model, compiled)


def test_packed_rows_are_float16_too():
    model = tiny_coda("bert", CodaConfig(reduction=1))
    compiled = halved(model, pack=True)
    packed = [node for node in compiled.graph if node.op_type in ("PackTokens", "UnpackTokens")]
    assert packed
    assert {node.outputs[0].dtype for node in packed} == {HALF}
    same(model, compiled)


def test_gates_are_not_rounded_nor_cast():
    compiled = routed("bert")
    puts = [node for node in compiled.graph if (node.domain, node.op_type) == (DOMAIN, "PutDifference")]
    assert [put.inputs[2].producer().op_type for put in puts] == ["Route", "Route"]
    assert {put.outputs[0].dtype for put in puts} == {HALF}


def test_between_a_sum_and_its_norm_stands_no_cast():
    compiled = routed("bert")
    norms = [node for node in compiled.graph if node.op_type == "LayerNormalization"]
    assert len(norms) == 5
    assert {node.inputs[0].producer().op_type for node in norms} == {"Add"}


def test_masks_stay_finite_and_leave_room():
    compiled = routed("mpnet")
    fills = [v.const_value.numpy() for v in compiled.graph.initializers.values() if v.dtype == HALF and v.shape == ()]
    assert min(float(fill) for fill in fills) == -32768


def test_distances_are_sorted_into_buckets_in_float32():
    """A logarithm of float16 would put some of MPNet's distances beside their bucket."""
    compiled = routed("mpnet")
    (log,) = (node for node in compiled.graph if node.op_type == "Log")
    assert log.outputs[0].dtype == FLOAT


def test_a_second_run_changes_nothing(family: str):
    compiled = routed(family)
    before = serialized(compiled)
    assert not ConvertToHalf()(compiled).modified
    assert serialized(compiled) == before


def test_graphs_without_layers_are_left_alone():
    model = parsed("g (float[N, 4] x) => (float[N, 4] y) { z = Relu(x) y = Add(z, z) }")
    before = serialized(model)
    assert not ConvertToHalf()(model).modified
    assert serialized(model) == before


def layer(text: str, *, shapes: bool = True) -> ir.Model:
    """A graph that is one layer."""
    model = parsed(text, shapes=shapes)
    for node in model.graph:
        node.metadata_props.update({LAYER_TAG: "0", ROLE_TAG: "feed_forward"})
    return model


def constants(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(name): value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_a_float_input_is_cast_once_and_outputs_keep_their_names():
    model = layer("g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) b = Add(a, x) y = Mul(b, a) }")
    assert ConvertToHalf()(model).modified
    assert [node.op_type for node in model.graph] == ["Cast", "Relu", "Add", "Mul", "Cast"]
    assert [(str(v.name), v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)] == [("x", FLOAT), ("y", FLOAT)]
    x = np.float32([[0.1, -2, 3, 1e3]])
    np.testing.assert_allclose(outputs(model, {"x": x})[0], (np.maximum(x, 0) + x) * np.maximum(x, 0), rtol=2e-3)


def test_what_a_schema_has_in_float32_alone_stays():
    model = layer(
        "g (float n, float[N] x) => (float[M] y) <float zero = {0}, float one = {1}> { y = Range(zero, n, one) }"
    )
    assert not ConvertToHalf()(model).modified


def test_a_constant_that_both_sides_read_has_two_forms():
    model = layer("g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { a = Mul(x, w) y = Add(a, w) }")
    next(iter(model.graph)).metadata_props[ROLE_TAG] = "router"
    ConvertToHalf()(model)
    kinds = {name: array.dtype for name, array in constants(model).items()}
    assert kinds == {"w": np.float32, "w.half": np.float16}


@pytest.mark.parametrize(
    ("number", "becomes"),
    [(-3.4e38, -32768), (1e6, 32768), (1e-12, 2.0**-24), (-1e-12, -(2.0**-24)), (0, 0), (65504, 65504), (-0.5, -0.5)],
)
def test_single_numbers_keep_their_purpose(number: float, becomes: float):
    model = layer(f"g (float[N] x) => (float[N] y) <float[1] c = {{{number}}}> {{ y = Add(x, c) }}")
    ConvertToHalf()(model)
    assert constants(model)["c"].dtype == np.float16
    assert float(constants(model)["c"][0]) == becomes


def test_infinity_and_nan_stay():
    model = layer("g (float[N] x) => (float[N] y) <float a = {0}, float b = {0}> { z = Add(x, a) y = Add(z, b) }")
    for name, number in (("a", -np.inf), ("b", np.nan)):
        model.graph.initializers[name].const_value = ir.tensor(np.array(number, np.float32), name=name)
    ConvertToHalf()(model)
    assert float(constants(model)["a"]) == -np.inf
    assert np.isnan(constants(model)["b"])


def test_a_weight_beyond_the_range_is_refused_by_name():
    model = layer("g (float[N, 2] x) => (float[N, 2] y) <float[2] big = {1, -70000}> { y = Mul(x, big) }")
    with pytest.raises(
        CompileError, match=r"^big has weights of up to 7e\+04, and float16 ends at 65504: use another precision$"
    ):
        ConvertToHalf().call(model)


def test_an_epsilon_does_not_vanish():
    text = (
        "g (float[N, 2] x, float[2] s) => (float[N, 2] y) { y = LayerNormalization <epsilon: float = 1e-12> (x, s, s) }"
    )
    model = layer(text)
    ConvertToHalf()(model)
    (norm,) = (node for node in model.graph if node.op_type == "LayerNormalization")
    assert norm.attributes.get_float("epsilon") == 2.0**-24


def test_zeros_are_made_in_float16():
    model = layer("g (int64[K] n, float[N] x) => (float[N] y) { z = ConstantOfShape(n) y = Add(x, z) }")
    ConvertToHalf()(model)
    (zeros,) = (node for node in model.graph if node.op_type == "ConstantOfShape")
    assert zeros.outputs[0].dtype == HALF
    np.testing.assert_array_equal(
        outputs(model, {"n": np.array([2]), "x": np.ones(2, np.float32)})[0], np.ones(2, np.float32)
    )

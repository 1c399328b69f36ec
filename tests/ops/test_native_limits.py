"""What native kernels are given is bounded: a model that makes no sense is one sentence, whoever wrote it."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from tests.ops.one_node import CPU_KERNELS, needs_int8_kernels

from coda_ops import DOMAIN, VERSION, native
from coda_ops.catalogue import find_operator

pytestmark = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
ROOT = Path(__file__).parents[2]
BIG = 2**36  # rows of nothing take no memory, and would take a minute to walk through
SCHEDULE = {"iterations": 20, "epsilon_start": 4.0, "epsilon_decay": 0.7, "epsilon_final": 0.03}


def empty(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


ROUTE = {"scores": empty(2, 5), "mask": np.ones((2, 5), bool)}
ROUTE_ATTRIBUTES = {"numerator": 2, "denominator": 1, **SCHEDULE}
NORM = {"x": empty(2, 8), "y": empty(2, 8), "shift": empty(8), "scale": empty(8), "bias": empty(8)}
SELF = {"qkv": empty(1, 4, 24), "bias": empty(1, 1, 1, 4)}
CROSS = {"query": empty(1, 4, 8), "key_value": empty(1, 4, 16), "bias": empty(1, 1, 1, 4)}
EMBED = {
    "words": empty(4, 8),
    "ids": empty(1, 3, dtype=np.int64),
    "types": empty(2, 8),
    "type_ids": empty(1, 3, dtype=np.int64),
    "positions": empty(4, 8),
    "position_ids": empty(1, 3, dtype=np.int64),
    "scale": empty(8),
    "bias": empty(8),
}
HEADS = {"num_heads": 2, "scale": 0.5}
REQUIRED = [
    ("Route", ROUTE, ROUTE_ATTRIBUTES),
    ("AddNorm", NORM, {"epsilon": 1e-5}),
    ("EmbedNorm", EMBED, {"epsilon": 1e-5}),
    ("SelfAttention", SELF, HEADS),
    ("CrossAttention", CROSS, HEADS),
]


def open_kernel(name, inputs, attributes=None, constants=(), *, fixed=False):
    """A session of one node without a body; shapes of its inputs are known, or their ranks alone."""
    outputs = [one.name for one in find_operator(DOMAIN, name).schema().outputs]
    types = {"indices": onnx.TensorProto.INT64, "used": onnx.TensorProto.BOOL}
    half = any(x.dtype == np.float16 for x in inputs.values())
    tokens = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(name, list(inputs), outputs, domain=DOMAIN, **(attributes or {}))],
        "one_node",
        [
            helper.make_tensor_value_info(
                key, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape if fixed else [None] * x.ndim
            )
            for key, x in inputs.items()
            if key not in constants
        ],
        [helper.make_tensor_value_info(key, types.get(key, tokens), None) for key in outputs],
        [numpy_helper.from_array(inputs[key], key) for key in constants],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(CPU_KERNELS))
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_kernel(name, inputs, attributes=None, constants=()):
    session = open_kernel(name, inputs, attributes, constants)
    return session.run(None, {key: x for key, x in inputs.items() if key not in constants})


@pytest.mark.parametrize(
    ("name", "inputs", "attributes", "key"), [(*one, key) for one in REQUIRED for key in one[2]], ids=str
)
@pytest.mark.parametrize("fixed", [False, True])
def test_an_attribute_is_there_and_of_its_type(name, inputs, attributes, key, fixed):
    """Shapes are inferred first, where onnxruntime would let an exception end the process."""
    integer = isinstance(attributes[key], int)
    sentence = f"{name}: {key} must be given as {'an integer' if integer else 'a finite number'}$"
    wrong = ["text", [1, 2], 0.5] if integer else ["text", [0.5], 1, math.nan, math.inf]
    for other in ({}, *({key: value} for value in wrong)):
        given = {**{k: v for k, v in attributes.items() if k != key}, **other}
        with pytest.raises(Exception, match=sentence):
            open_kernel(name, inputs, given, fixed=fixed)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"numerator": 0}, "Route: r = numerator / denominator must be at least 1, in numbers below 2^31"),
        ({"numerator": 0, "denominator": 0}, "Route: r = numerator / denominator must be at least 1"),
        ({"numerator": 2**63 - 1, "denominator": 2**62}, "Route: r = numerator / denominator must be at least 1"),
        ({"numerator": -4, "denominator": -2}, "Route: r = numerator / denominator must be at least 1"),
        ({"iterations": 2**62}, "Route: iterations must be 1 to 1000"),
        ({"epsilon_start": 3e38, "epsilon_decay": 3e38}, "Route: epsilons must stay finite numbers"),
    ],
)
def test_routes_that_make_no_sense(wrong, sentence, fixed):
    with pytest.raises(Exception, match=sentence.replace("^", r"\^")):
        open_kernel("Route", ROUTE, {**ROUTE_ATTRIBUTES, **wrong}, fixed=fixed)


@pytest.mark.parametrize("heads", [0, -1, 2**31, 2**62])
@pytest.mark.parametrize(("name", "inputs"), [("SelfAttention", SELF), ("CrossAttention", CROSS)])
def test_numbers_of_heads_that_make_no_sense(name, inputs, heads):
    with pytest.raises(Exception, match=rf"{name}: num_heads must be 1 to 2\^31 - 1$"):
        open_kernel(name, inputs, {**HEADS, "num_heads": heads})


def test_heads_that_share_no_width():
    with pytest.raises(Exception, match="SelfAttention: qkv must be .*, its heads of one width"):
        run_kernel("SelfAttention", SELF, {**HEADS, "num_heads": 3})
    (out,) = run_kernel("SelfAttention", {**SELF, "qkv": empty(1, 4, 0)}, {**HEADS, "num_heads": 2**31 - 1})
    assert out.shape == (1, 4, 0)


@pytest.mark.parametrize("name", ["AddNorm", "EmbedNorm"])
def test_norms_add_nothing_negative_to_a_variance(name):
    with pytest.raises(Exception, match=f"{name}: epsilon must be 0 or above$"):
        open_kernel(name, NORM if name == "AddNorm" else EMBED, {"epsilon": -1e-5})


def int8_linear(inputs, outputs):
    weight = np.full((inputs, outputs), 128, np.uint8)
    return {"x": empty(1, 3, inputs), "weight": weight, "scale": empty(outputs), "bias": empty(outputs)}


@needs_int8_kernels
@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (2**17 + 1, 1)])
def test_weights_of_no_inputs_or_too_many(shape):
    with pytest.raises(Exception, match=r"Int8Linear: weight must have 1 to 2\^17 inputs, and outputs$"):
        open_kernel("Int8Linear", int8_linear(*shape), constants=("weight", "scale", "bias"))


@needs_int8_kernels
def test_sums_of_as_many_inputs_as_there_may_be():
    given = {
        "x": np.full((1, 1, 2**17), -127, np.float32),
        "weight": empty(2**17, 1, dtype=np.uint8),
        "scale": np.ones(1, np.float32),
        "bias": empty(1),
    }
    (out,) = run_kernel("Int8Linear", given, constants=("weight", "scale", "bias"))
    assert out.item() == 127 * 128 * 2**17


@needs_int8_kernels
def test_weights_that_are_no_constants():
    with pytest.raises(Exception, match="Int8Linear: weight, scale and bias must be constants$"):
        open_kernel("Int8Linear", int8_linear(8, 8))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("Route", {"scores": empty(BIG, 0), "mask": empty(BIG, 0, dtype=bool)}, ROUTE_ATTRIBUTES),
        ("TakeTokens", {"x": empty(BIG, 1, 0), "indices": empty(BIG, 0, dtype=np.int64)}, {}),
        (
            "PutTokens",
            {
                "base": empty(BIG, 1, 0),
                "indices": empty(BIG, 0, dtype=np.int64),
                "gates": empty(BIG, 0),
                "update": empty(BIG, 0, 0),
            },
            {},
        ),
        ("AddGelu", {"x": empty(BIG, 0), "bias": empty(0)}, {}),
    ],
)
def test_many_rows_of_nothing(name, inputs, attributes):
    for out in run_kernel(name, inputs, attributes):
        assert out.size == 0
        assert out.shape[0] == BIG


def test_a_tensor_whose_lengths_cannot_be_multiplied():
    with pytest.raises(Exception, match=r"TakeTokens: an input has more than 2\^48 elements$"):
        run_kernel("TakeTokens", {"x": empty(0, 2**30, 2**30), "indices": empty(0, 1, dtype=np.int64)})


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"x": empty(), "bias": empty(1)}, r"x must be \[..., width\] and bias \[width\]"),
        ({"x": empty(2, 8), "bias": empty(7)}, r"x must be \[..., width\] and bias \[width\]"),
        ({"x": empty(2, 8), "bias": empty(8, 1)}, r"x must be \[..., width\] and bias \[width\]"),
    ],
)
def test_ranks_that_do_not_fit(inputs, sentence):
    with pytest.raises(Exception, match=f"AddGelu: {sentence}$"):
        run_kernel("AddGelu", inputs)


@pytest.mark.parametrize("bad", [-5, 4, 2**40, -(2**63)])
@pytest.mark.parametrize("key", ["ids", "type_ids", "position_ids"])
def test_ids_outside_of_a_table(key, bad):
    ids = EMBED[key].copy()
    ids[0, 1] = bad
    with pytest.raises(Exception, match=f"EmbedNorm: id {bad} lies outside of a table of"):
        run_kernel("EmbedNorm", {**EMBED, key: ids}, {"epsilon": 1e-5})


def run_short_of_memory():
    """Attend with room for the output, and none for what a thread works in. In a process of its own."""
    tokens, width = 2048, 4096
    inputs = {"qkv": empty(1, tokens, 3 * width), "bias": empty(1, 1, 1, tokens)}
    session = open_kernel("SelfAttention", inputs, {"num_heads": 1, "scale": 0.5})
    resident = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (resident + 4 * tokens * width + 2**23, resource.RLIM_INFINITY))
    session.run(None, inputs)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory")
def test_a_thread_that_finds_no_memory_ends_the_run_alone():
    command = "from tests.ops.test_native_limits import run_short_of_memory; run_short_of_memory()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "SelfAttention: memory does not suffice for this input" in done.stderr

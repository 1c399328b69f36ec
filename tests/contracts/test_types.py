"""One truth of types: what the catalogue says of an operator its schema allows, its bodies compute, and every kernel
takes; nothing else is allowed or taken."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import erf
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper
from tests.ops.one_node import open_node

from coda_ops import DOMAIN, VERSION, native
from coda_ops.catalogue import OPERATORS, Operator, find_operator
from coda_ops.domain import BODY_OPSET

Array = NDArray[Any]
TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "bfloat16": None}
TOLERANCES = {"float": 2e-6, "float16": 2e-3}  # times the largest output: some roundings
GENERIC = [one for one in OPERATORS if any(formal.type_str == "T" for formal in one.schema().inputs)]
LIBRARIES = list(dict.fromkeys((None, native.library())))


@dataclass(frozen=True)
class Sample:
    """Inputs of an operator, shapes of tokens among them, and what it makes of them in float64."""

    tokens: dict[str, tuple[int, ...]]
    oracle: Callable[..., Array]
    others: dict[str, Array] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def put(base: Array, indices: Array, gates: Array, update: Array) -> Array:
    out = base.copy()
    for b, row in enumerate(indices):
        out[b, row] += gates[b][:, None] * update[b]
    return out


def blend(base: Array, indices: Array, gates: Array, now: Array) -> Array:
    return put(base, indices, gates, now - np.take_along_axis(base, indices[..., None], 1))


def set_(base: Array, indices: Array, used: Array, rows: Array) -> Array:
    out = base.copy()
    for b, row in enumerate(indices):
        out[b, row[used[b]]] = rows[b, used[b]]
    return out


def unpack(rows: Array, used: Array) -> Array:
    out = np.zeros((*used.shape, rows.shape[1]))
    out[used] = rows
    return out


def attend(qkv: Array, bias: Array) -> Array:
    query, key, value = (part.reshape(2, 5, 2, 4).swapaxes(1, 2) for part in np.split(qkv, 3, -1))
    scores = query @ key.swapaxes(2, 3) * 0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ value).swapaxes(1, 2).reshape(2, 5, 8)


def cross_attend(query: Array, key_value: Array, bias: Array) -> Array:
    """By attend, of as many tokens: queries that are missing are 0."""
    query = np.pad(query, ((0, 0), (0, 5 - query.shape[1]), (0, 0)))
    return attend(np.concatenate((query, key_value), -1), bias)


def k_to_all_attend(qkv: Array, key_value: Array, indices: Array, used: Array, bias: Array) -> Array:
    memory = set_(key_value, indices, used, qkv[..., 8:])
    return cross_attend(qkv[..., :8], memory, bias)[:, :3]


def normed(x: Array, y: Array, shift: Array, scale: Array, bias: Array) -> Array:
    total = x + (y + shift)
    return (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-5) * scale + bias


def adapter(x: Array, down: Array, down_bias: Array, up: Array, up_bias: Array) -> Array:
    return np.maximum(x @ down + down_bias, 0) @ up + up_bias


def swish_adapter(residual: Array, x: Array, down: Array, down_bias: Array, up: Array, up_bias: Array) -> Array:
    hidden = x @ down + down_bias
    return residual + (hidden / (1 + np.exp(-hidden)) @ up + up_bias)


def low_rank(residual: Array, x: Array, down: Array, up: Array, bias: Array) -> Array:
    return residual + (x @ down @ up + bias)


INDICES = {"indices": np.array([[4, 0, 2], [1, 3, 0]])}
SLOTS = {"used": np.array([[True, False, True], [True, True, False]])}
GATES = {"gates": np.array([[0.25, 0, 1], [0.7, 0.1, 0.9]], np.float32)}
USED = {"used": np.array([[True, False, True, True, False], [False, True, True, False, False]])}
HEADS = {"num_heads": 2, "scale": 0.5}
TOKENS, TAKEN, WIDTH = (2, 5, 8), (2, 3, 8), (8,)
BOTTLENECK = {"x": TOKENS, "down": (8, 3), "down_bias": (3,), "up": (3, 8), "up_bias": WIDTH}
LOW_RANK = {"x": TOKENS, "down": (8, 3), "up": (3, 8), "bias": WIDTH}
SAMPLES = {
    "TakeTokens": Sample({"x": TOKENS}, lambda x, indices: np.take_along_axis(x, indices[..., None], 1), INDICES),
    "PutTokens": Sample({"base": TOKENS, "update": TAKEN}, put, {**INDICES, **GATES}),
    "PutDifference": Sample(
        {"base": TOKENS, "now": TAKEN, "before": TAKEN},
        lambda base, indices, gates, now, before: put(base, indices, gates, now - before),
        {**INDICES, **GATES},
    ),
    "BlendTokens": Sample({"base": TOKENS, "now": TAKEN}, blend, {**INDICES, **GATES}),
    "SetTokens": Sample({"base": TOKENS, "rows": TAKEN}, set_, {**INDICES, **SLOTS}),
    "PackTokens": Sample({"x": TOKENS}, lambda x, used: x[used], USED),
    "UnpackTokens": Sample({"rows": (5, 8)}, unpack, USED),
    "SelfAttention": Sample({"qkv": (2, 5, 24), "bias": (2, 1, 1, 5)}, attend, attributes=HEADS),
    "KToAllAttention": Sample(
        {"qkv": (2, 3, 24), "key_value": (2, 5, 16), "bias": (2, 1, 1, 5)},
        k_to_all_attend,
        {**INDICES, **SLOTS},
        HEADS,
    ),
    "CrossAttention": Sample(
        {"query": TAKEN, "key_value": (2, 5, 16), "bias": (2, 1, 1, 5)},
        lambda **given: cross_attend(**given)[:, :3],
        attributes=HEADS,
    ),
    "Adapter": Sample(BOTTLENECK, adapter),
    "AddAdapter": Sample({"residual": TOKENS, **BOTTLENECK}, lambda residual, **x: residual + adapter(**x)),
    "AddSwishAdapter": Sample({"residual": TOKENS, **BOTTLENECK}, swish_adapter),
    "AddLowRank": Sample({"residual": TOKENS, **LOW_RANK}, low_rank),
    "AddGelu": Sample(
        {"x": TOKENS, "bias": WIDTH}, lambda x, bias: (x + bias) / 2 * (1 + np.vectorize(erf)((x + bias) / 2**0.5))
    ),
    "AddNorm": Sample(
        {"x": TOKENS, "y": TOKENS, "shift": WIDTH, "scale": WIDTH, "bias": WIDTH}, normed, attributes={"epsilon": 1e-5}
    ),
}
every = pytest.mark.parametrize("operator", GENERIC, ids=lambda one: one.name)


def inputs_of(operator: Operator, sample: Sample, dtype: Any) -> dict[str, Array]:
    """Arrays by name in the schema's order, tokens of a type."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=shape).astype(dtype) for name, shape in sample.tokens.items()}
    return {one.name: {**drawn, **sample.others}[one.name] for one in operator.schema().inputs}


def one_node(operator: Operator, kind: str) -> onnx.ModelProto:
    """A node without a body whose tokens are of a type, its other inputs as its schema has them."""
    schema, sample = operator.schema(), SAMPLES[operator.name]

    def values(formals: Any) -> list[onnx.ValueInfoProto]:
        names = [kind if one.type_str == "T" else one.type_str[len("tensor(") : -1] for one in formals]
        types = [onnx.TensorProto.DataType.Value(name.upper()) for name in names]
        return [helper.make_tensor_value_info(one.name, at, None) for one, at in zip(formals, types, strict=True)]

    inputs, outputs = values(schema.inputs), values(schema.outputs)
    names = [one.name for one in inputs], [one.name for one in outputs]
    node = helper.make_node(operator.name, *names, domain=operator.domain, **sample.attributes)
    imports = [helper.make_opsetid("", BODY_OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=imports, ir_version=10)


def allows(model: onnx.ModelProto) -> bool:
    """Whether a model's types are those of its schemas."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def loads(model: onnx.ModelProto) -> bool:
    """Whether the CPU provider has a native kernel of the one node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(native.LIBRARIES["cpu"].path))
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        said = str(error)
    else:
        return True
    return not ("Type" in said or "is not a registered" in said)  # anything else is no refusal of a type


def test_every_operator_of_tokens_has_a_sample():
    assert {one.name for one in GENERIC} == set(SAMPLES)


def test_operators_without_a_choice_are_float32_alone():
    others = [one for one in OPERATORS if one not in GENERIC]
    assert others
    assert {one.types for one in others} == {("float",)}


@every
@pytest.mark.parametrize("kind", TYPES)
def test_a_schema_allows_what_the_catalogue_says(operator: Operator, kind: str):
    assert allows(one_node(operator, kind)) == (kind in operator.types)


@every
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_native_kernels_take_what_the_catalogue_says(operator: Operator, kind: str):
    assert loads(one_node(operator, kind)) == ("cpu" in operator.kernels and kind in operator.types)


@pytest.mark.parametrize(
    ("name", "kind", "runtime"),
    [(one.name, kind, runtime) for one in GENERIC for kind in one.types for runtime in ("", *one.bodies)],
)
@pytest.mark.parametrize("library", LIBRARIES, ids=["body", "kernel"][: len(LIBRARIES)])
def test_bodies_and_kernels_compute_in_every_type(name: str, kind: str, runtime: str, library: Any):
    operator, sample = find_operator(DOMAIN, name), SAMPLES[name]
    assert operator is not None
    given = inputs_of(operator, sample, TYPES[kind])
    body = operator.function_body(sample.attributes, runtime)
    (out,) = open_node(body, given, sample.attributes, library).run(None, given)
    wide = {key: array.astype(np.float64) if array.dtype.kind == "f" else array for key, array in given.items()}
    wanted = sample.oracle(**wide)
    assert out.dtype == TYPES[kind]
    np.testing.assert_allclose(out, wanted, rtol=0, atol=TOLERANCES[kind] * max(1.0, np.abs(wanted).max()))


def test_no_body_promises_a_type_that_it_breaks_in():
    """As AddGelu's would, whose constants are float32: its schema has to say so."""
    gelu = find_operator(DOMAIN, "AddGelu")
    assert gelu is not None
    given = {"x": np.ones((1, 2), np.float16), "bias": np.ones(2, np.float16)}
    with pytest.raises(Exception, match="float16"):
        open_node(gelu.function_body({}), given)

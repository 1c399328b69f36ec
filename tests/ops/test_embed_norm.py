"""EmbedNorm and Int8EmbedNorm against a float64 oracle: function body and native kernel."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, native
from coda_ops.embed_norm import body, int8_body

EPSILON = {"epsilon": 1e-5}
libraries = [None] if native.library() is None else [None, CPU_KERNELS]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")


def arrays(
    seed: int, batch: int, tokens: int, width: int, *, quantised: bool, shared: tuple[bool, bool] = (False, True)
) -> dict[str, np.ndarray]:
    """Inputs in order; shared: whether types and positions are the same for every text."""
    rng = np.random.default_rng(seed)
    ids = [
        rng.integers(-n, n, (1 if one else batch, tokens)) for n, one in zip((11, 3, 40), (False, *shared), strict=True)
    ]
    floats = {"types": (3, width), "positions": (40, width), "scale": (width,), "bias": (width,)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in floats.items()}
    words = rng.integers(-127, 128, (11, width)).astype(np.int8) if quantised else rng.normal(size=(11, width))
    first = {"words": words if quantised else words.astype(np.float32)}
    if quantised:
        first["words_scale"] = rng.uniform(0.005, 0.02, (11, 1)).astype(np.float32)
    return first | {
        "ids": ids[0],
        "types": made["types"],
        "type_ids": ids[1],
        "positions": made["positions"],
        "position_ids": ids[2],
        "scale": made["scale"],
        "bias": made["bias"],
    }


def oracle(words, ids, types, type_ids, positions, position_ids, scale, bias, words_scale=None):
    word = words[ids].astype(np.float64) * (1 if words_scale is None else words_scale[ids].astype(np.float64))
    total = word + types[type_ids].astype(np.float64) + positions[position_ids]
    centred = total - total.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON["epsilon"]) * scale + bias


@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(2, 70),
    st.booleans(),
    st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(
    seed: int, batch: int, tokens: int, width: int, quantised: bool, shared: tuple[bool, bool]
):
    given_ = arrays(seed, batch, tokens, width, quantised=quantised, shared=shared)
    wanted = oracle(**given_)
    made = int8_body() if quantised else body()
    for values in (run_node(made, given_, EPSILON, library)[0] for library in libraries):
        np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5 * (1 + np.abs(wanted).max()))


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize("name", ["type_ids", "position_ids"])
def test_one_id_may_serve_all_tokens(library: str | None, name: str):
    given_ = arrays(0, 2, 5, 8, quantised=False)
    given_[name] = np.array([[1]])
    (found,) = run_node(body(), given_, EPSILON, library)
    np.testing.assert_allclose(found, oracle(**given_), rtol=0, atol=1e-5)


@needs_kernels
def test_threads_share_many_tokens():
    given_ = arrays(1, 4, 130, 384, quantised=True)
    one, four = (run_node(int8_body(), given_, EPSILON, CPU_KERNELS, threads)[0] for threads in (1, 4))
    assert one.tobytes() == four.tobytes()


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize("name", ["ids", "type_ids", "position_ids"])
@pytest.mark.parametrize("bad", [-41, 40, 2**40])
def test_an_id_outside_of_its_table_is_refused(library: str | None, name: str, bad: int):
    given_ = arrays(2, 2, 5, 8, quantised=True)
    given_[name] = given_[name].copy()
    given_[name][-1, 3] = bad
    told = r"out of data bounds|Int8EmbedNorm: id -?\d+ lies outside of a table of \d+ rows"
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match=told):
        run_node(int8_body(), given_, EPSILON, library)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("types", np.zeros((3, 4), np.float32)),
        ("positions", np.zeros((40, 9), np.float32)),
        ("type_ids", np.zeros((2, 4), np.int64)),
        ("position_ids", np.zeros((3, 5), np.int64)),
        ("scale", np.zeros(4, np.float32)),
        ("bias", np.zeros(9, np.float32)),
        ("words_scale", np.zeros((10, 1), np.float32)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, wrong: np.ndarray):
    given_ = arrays(3, 2, 5, 8, quantised=True) | {name: wrong}
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="Int8EmbedNorm: tables must be"):
        run_node(int8_body(), given_, EPSILON, CPU_KERNELS)


def test_the_schemas_are_registered():
    assert onnx.defs.has("EmbedNorm", DOMAIN)
    assert onnx.defs.has("Int8EmbedNorm", DOMAIN)

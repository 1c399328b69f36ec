"""KToAllAttention and CrossAttention against a float64 oracle: function body and native kernel."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, open_node
from tests.ops.test_self_attention import HIDDEN, libraries, needs_kernels
from tests.ops.test_self_attention import oracle as self_oracle

from coda_ops import DOMAIN, k_to_all_attention

BODIES = {"KToAllAttention": k_to_all_attention.body, "CrossAttention": k_to_all_attention.cross_body}
every = pytest.mark.parametrize("operator", BODIES)


def drawn(
    operator: str, seed: int, batch: int, tokens: int, slots: int, heads: int, each: int
) -> dict[str, np.ndarray]:
    """Texts of any length from one token on; slots in use from none to all, and scores of any size."""
    rng = np.random.default_rng(seed)
    width, size = heads * each, rng.choice([0.1, 1, 5])
    lengths = rng.integers(1, tokens + 1, (batch, 1, 1, 1))
    bias = np.where(np.arange(tokens) < lengths, 0, HIDDEN).astype(np.float32)
    memory = (rng.normal(size=(batch, tokens, 2 * width)) * size).astype(np.float32)
    queries = (rng.normal(size=(batch, slots, (3 if operator == "KToAllAttention" else 1) * width)) * size).astype("f4")
    if operator == "CrossAttention":
        return {"query": queries, "key_value": memory, "bias": bias}
    indices = np.stack([rng.permutation(tokens)[:slots].astype(np.int64) for _ in range(batch)])
    used = np.arange(slots) < rng.integers(0, slots + 1, (batch, 1))
    return {"qkv": queries, "key_value": memory, "indices": indices, "used": used, "bias": bias}


def oracle(given_: dict[str, np.ndarray], num_heads: int, scale: float) -> np.ndarray:
    """Attention of all tokens of a text, whose other queries are nobody's."""
    memory, bias = given_["key_value"], given_["bias"]
    batch, tokens, width = memory.shape[0], memory.shape[1], memory.shape[2] // 2
    out = []
    for b in range(batch):
        queries = given_["qkv" if "qkv" in given_ else "query"][b]
        all_memory = memory[b].copy()
        if "qkv" in given_:
            used = given_["used"][b]
            all_memory[given_["indices"][b, used]] = queries[used, width:]
        rows = np.zeros((1, max(tokens, len(queries)), 3 * width))
        rows[0, : len(queries), :width], rows[0, :tokens, width:] = queries[:, :width], all_memory
        one = np.broadcast_to(bias[b % len(bias)], (num_heads, len(queries), tokens))
        wide = np.full((1, num_heads, rows.shape[1], rows.shape[1]), -np.inf)
        wide[0, :, : len(queries), :tokens], wide[0, :, len(queries) :, 0] = one, 0
        out.append(self_oracle(rows, wide, num_heads, scale)[0, : len(queries)])
    return np.stack(out)


def run(operator: str, given_: dict[str, np.ndarray], heads: int, library: Any = None, threads: int = 1) -> np.ndarray:
    attributes = {"num_heads": heads, "scale": 0.3}
    session = open_node(BODIES[operator](), given_, attributes, library, threads)
    found: np.ndarray = session.run(None, given_)[0]
    return found


@every
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 40), st.sampled_from([130, 300])),
    heads=st.integers(1, 3),
    each=st.sampled_from([1, 3, 8, 16, 40, 64]),
    data=st.data(),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(
    operator: str, seed: int, batch: int, tokens: int, heads: int, each: int, data: st.DataObject
):
    slots = data.draw(st.integers(1, tokens))
    given_ = drawn(operator, seed, batch, tokens, slots, heads, each)
    wanted = oracle(given_, heads, 0.3)
    largest = np.abs(given_["key_value"]).max()
    for library in libraries:
        found = run(operator, given_, heads, library)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * (1 + largest))


@every
@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(
    "shape", [(3, 1, 1, 9), (1, 1, 1, 9), (1, 2, 1, 9), (1, 2, 4, 9), (3, 1, 4, 9), (3, 2, 1, 9), (3, 2, 4, 9)]
)
def test_biases_of_texts_heads_and_queries(operator: str, library: Any, shape: tuple[int, ...]):
    given_ = drawn(operator, 1, 3, 9, 4, 2, 8)
    given_["bias"] = np.random.default_rng(2).normal(size=shape).astype(np.float32) * 3
    np.testing.assert_allclose(run(operator, given_, 2, library), oracle(given_, 2, 0.3), rtol=0, atol=1e-4)


@needs_kernels
@every
@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (3, 3, 1, 9), (1, 1, 3, 9), (1, 1, 1, 8), (3, 1, 9)])
def test_other_biases_are_refused(operator: str, shape: tuple[int, ...]):
    given_ = drawn(operator, 1, 3, 9, 4, 2, 8)
    given_["bias"] = np.zeros(shape, np.float32)
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match=f"{operator}: (qkv|query) must be"):
        run(operator, given_, 2, CPU_KERNELS)


@pytest.mark.parametrize("library", libraries)
def test_own_keys_and_values_take_the_places_of_others_in_use_alone(library: Any):
    """What stands in the places of slots in use, and in slots that are not, is never read."""
    given_ = drawn("KToAllAttention", 1, 2, 9, 4, 2, 8)
    given_["used"] = np.array([[True, False, True, False], [False, False, False, True]])
    given_["bias"][:] = 0
    wanted = run("KToAllAttention", given_, 2, library)
    used = given_["used"]
    for b in range(2):
        given_["key_value"][b, given_["indices"][b, used[b]]] = np.nan
        given_["qkv"][b, ~used[b], 16:] = np.nan
    np.testing.assert_array_equal(run("KToAllAttention", given_, 2, library), wanted)


@needs_kernels
def test_more_queries_than_tokens():
    given_ = drawn("CrossAttention", 2, 2, 5, 40, 2, 8)
    np.testing.assert_allclose(run("CrossAttention", given_, 2, CPU_KERNELS), oracle(given_, 2, 0.3), rtol=0, atol=1e-4)


@needs_kernels
@every
def test_threads_and_company_change_nothing(operator: str):
    given_ = drawn(operator, 1, 4, 300, 150, 3, 32)
    one, four = (run(operator, given_, 3, CPU_KERNELS, threads) for threads in (1, 4))
    assert one.tobytes() == four.tobytes()
    alone = run(operator, {name: array[2:3] for name, array in given_.items()}, 3, CPU_KERNELS)
    assert alone.tobytes() == one[2:3].tobytes()


@needs_kernels
@pytest.mark.parametrize(
    ("operator", "name"),
    [(operator, name) for operator in BODIES for name in drawn(operator, 0, 1, 1, 1, 1, 1)],
)
def test_shapes_that_do_not_fit_are_refused(operator: str, name: str):
    given_ = drawn(operator, 0, 2, 6, 5, 2, 8)
    given_[name] = given_[name][..., :4]
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match=f"{operator}: (qkv|query) must be"):
        run(operator, given_, 2, CPU_KERNELS)


@needs_kernels
@pytest.mark.parametrize("bad", [-1, 6, 2**40])
def test_an_index_outside_of_the_text_is_refused(bad: int):
    given_ = drawn("KToAllAttention", 0, 2, 6, 5, 2, 8)
    given_["indices"][1, 4] = bad
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="KToAllAttention: an index lies outside of the sequence"):
        run("KToAllAttention", given_, 2, CPU_KERNELS)


@needs_kernels
@every
@pytest.mark.parametrize("heads", [0, -1, 2**31])
def test_heads_that_make_no_sense_are_refused(operator: str, heads: int):
    fails = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException
    with pytest.raises(fails, match=f"{operator}: num_heads must be 1 to"):
        run(operator, drawn(operator, 0, 1, 4, 2, 2, 8), heads, CPU_KERNELS)


def test_the_schemas_are_registered():
    assert all(onnx.defs.has(name, DOMAIN) for name in BODIES)

"""SelfAttention against a float64 oracle: function body and native kernel."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, native, self_attention

libraries = [None] if native.library() is None else [None, CPU_KERNELS]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
HIDDEN = np.finfo(np.float32).min


def drawn(seed: int, batch: int, tokens: int, heads: int, each: int) -> dict[str, np.ndarray]:
    """Texts of any length from one token on, behind each other's padding; scores of any size."""
    rng = np.random.default_rng(seed)
    qkv = rng.normal(size=(batch, tokens, 3 * heads * each)) * rng.choice([0.1, 1, 5])
    lengths = rng.integers(1, tokens + 1, (batch, 1, 1, 1))
    bias = np.where(np.arange(tokens) < lengths, 0, HIDDEN)
    return {"qkv": qkv.astype(np.float32), "bias": bias.astype(np.float32)}


def oracle(qkv: np.ndarray, bias: np.ndarray, num_heads: int, scale: float) -> np.ndarray:
    batch, tokens, width = qkv.shape
    each = width // 3 // num_heads
    query, key, value = qkv.astype(np.float64).reshape(batch, tokens, 3, num_heads, each).transpose(2, 0, 3, 1, 4)
    scores = query @ key.swapaxes(-1, -2) * scale + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ value
    return mixed.swapaxes(1, 2).reshape(batch, tokens, -1)


@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.one_of(st.integers(1, 40), st.sampled_from([64, 130, 300])),
    st.integers(1, 3),
    st.sampled_from([1, 3, 8, 16, 32, 40, 64]),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(seed: int, batch: int, tokens: int, heads: int, each: int):
    given_ = drawn(seed, batch, tokens, heads, each)
    attributes = {"num_heads": heads, "scale": each**-0.5}
    wanted = oracle(**given_, **attributes)
    found = [run_node(self_attention.body(), given_, attributes, library)[0] for library in libraries]
    for values in found:
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5 * (1 + np.abs(given_["qkv"]).max()))


@pytest.mark.parametrize("library", libraries)
def test_a_text_without_a_token_stays_finite(library: str | None):
    """Of scores that are all hidden alike, softmax makes a mean."""
    given_ = drawn(0, 2, 5, 2, 8)
    given_["bias"][1] = HIDDEN
    attributes = {"num_heads": 2, "scale": 1.0}
    found = run_node(self_attention.body(), given_, attributes, library)[0]
    means = given_["qkv"][1, :, 32:].mean(0)
    np.testing.assert_allclose(found[1], np.broadcast_to(means, (5, 16)), rtol=0, atol=1e-5)


def test_the_schema_is_registered():
    assert onnx.defs.has("SelfAttention", DOMAIN)


@needs_kernels
def test_threads_and_company_change_nothing():
    given_ = drawn(1, 4, 200, 3, 32)
    attributes = {"num_heads": 3, "scale": 0.2}
    body = self_attention.body()
    one, four = (run_node(body, given_, attributes, CPU_KERNELS, threads)[0] for threads in (1, 4))
    assert one.tobytes() == four.tobytes()
    alone = run_node(body, {name: array[2:3] for name, array in given_.items()}, attributes, CPU_KERNELS)[0]
    assert alone.tobytes() == one[2:3].tobytes()


@needs_kernels
@pytest.mark.parametrize(("name", "heads"), [("bias", 2), ("qkv", 5)])
def test_shapes_that_do_not_fit_are_refused(name: str, heads: int):
    given_ = drawn(0, 2, 6, 2, 8)
    given_["bias"] = given_["bias"][..., :4] if name == "bias" else given_["bias"]
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="SelfAttention: qkv must be"):
        run_node(self_attention.body(), given_, {"num_heads": heads, "scale": 1.0}, CPU_KERNELS)

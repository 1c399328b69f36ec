"""PackTokens, body and native kernel, against numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, native
from coda_ops.pack_tokens import body

libraries = [None] if native.library() is None else [None, CPU_KERNELS]


def ragged(seed: int, batch: int, tokens: int, width: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and which of them are in use."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, tokens, width)).astype(np.float32), rng.random((batch, tokens)) < share


def oracle(x: np.ndarray, used: np.ndarray) -> np.ndarray:
    rows = [x[b, i] for b in range(len(x)) for i in range(x.shape[1]) if used[b, i]]
    return np.array(rows, x.dtype).reshape(-1, x.shape[2])


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0, 0.5, 1]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(seed: int, batch: int, tokens: int, width: int, share: float):
    x, used = ragged(seed, batch, tokens, width, share)
    rows = oracle(x, used)
    for library in libraries:
        (found,) = run_node(body(), {"x": x, "used": used}, library=library)
        np.testing.assert_array_equal(found, rows)


def test_the_schema_is_registered():
    assert onnx.defs.has("PackTokens", DOMAIN)


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_threads_share_large_batches():
    x, used = ragged(0, 8, 300, 384, 0.6)
    one, four = (run_node(body(), {"x": x, "used": used}, None, CPU_KERNELS, n)[0] for n in (1, 4))
    assert one.tobytes() == four.tobytes() == oracle(x, used).tobytes()


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_shapes_that_do_not_fit_are_refused():
    x, used = ragged(0, 2, 5, 4, 0.5)
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="PackTokens: x must be"):
        run_node(body(), {"x": x, "used": used[:, :4]}, library=CPU_KERNELS)

"""UnpackTokens, body and native kernel, against numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node
from tests.ops.test_pack_tokens import libraries, oracle, ragged

from coda_ops import DOMAIN, native
from coda_ops.unpack_tokens import body


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0, 0.5, 1]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_it_is_the_inverse_of_packing_and_zero_elsewhere(seed: int, batch: int, tokens: int, width: int, share: float):
    x, used = ragged(seed, batch, tokens, width, share)
    for library in libraries:
        (found,) = run_node(body(), {"rows": oracle(x, used), "used": used}, library=library)
        np.testing.assert_array_equal(found, np.where(used[..., None], x, 0))


def test_the_schema_is_registered():
    assert onnx.defs.has("UnpackTokens", DOMAIN)


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
def test_another_number_of_rows_is_refused():
    x, used = ragged(0, 2, 5, 4, 0.5)
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="as many rows as tokens in use"):
        run_node(body(), {"rows": oracle(x, used)[1:], "used": used}, library=CPU_KERNELS)

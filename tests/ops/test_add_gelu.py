"""AddGelu against a float64 oracle: function body and native kernel."""

from math import erf

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, add_gelu, cpu, native

libraries = [None] if native.library() is None else [None, CPU_KERNELS]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")


def oracle(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide * 0.5 * (1 + np.vectorize(erf)(wide / 2**0.5))


@given(st.integers(0, 2**31), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from([1e-3, 1.0, 4.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(seed: int, shape: list[int], size: float):
    rng = np.random.default_rng(seed)
    given_ = {"x": rng.normal(size=shape) * size, "bias": rng.normal(size=shape[-1:])}
    given_ = {name: array.astype(np.float32) for name, array in given_.items()}
    wanted = oracle(given_["x"] + given_["bias"])
    found = [run_node(add_gelu.body(), given_, None, library)[0] for library in libraries]
    for values in found:
        np.testing.assert_allclose(values, wanted, rtol=2e-7, atol=1e-6)


@needs_kernels
def test_the_kernel_is_exact_everywhere():
    x = np.linspace(-12, 12, 500_000).astype(np.float32)
    x = np.concatenate([x, np.float32([0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])[None]
    found = run_node(add_gelu.body(), {"x": x, "bias": np.zeros(x.size, np.float32)}, None, CPU_KERNELS)[0]
    wanted = oracle(x)
    # A float32 of 12 is rounded by 5e-7; without fused products, before AVX2, the polynomials round once more.
    assert np.abs(found - wanted)[0, :-6].max() < (7e-7 if cpu.allowed("avx2") else 8e-7)
    np.testing.assert_array_equal(found[0, -6:], np.float32([0, 0, 5e-31, -5e-31, 1e30, 0]))
    assert np.isnan(run_node(add_gelu.body(), {"x": x * np.nan, "bias": 0 * x[0]}, None, CPU_KERNELS)[0]).all()


@needs_kernels
def test_shapes_that_do_not_fit_are_refused():
    given_ = {"x": np.zeros((2, 3, 8), np.float32), "bias": np.zeros(4, np.float32)}
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="AddGelu: x must be"):
        run_node(add_gelu.body(), given_, None, CPU_KERNELS)


def test_the_schema_is_registered():
    assert onnx.defs.has("AddGelu", DOMAIN)

"""AddNorm against a float64 oracle: function body and native kernel."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, add_norm, native

libraries = [None] if native.library() is None else [None, CPU_KERNELS]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")


def arrays(seed: int, shape: tuple[int, ...], offset: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=shape) + offset for name in ("x", "y")}
    made |= {name: rng.normal(size=shape[-1:]) for name in ("shift", "scale", "bias")}
    return {name: array.astype(np.float32) for name, array in made.items()}


def oracle(x: np.ndarray, y: np.ndarray, shift: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float):
    total = sum(part.astype(np.float64) for part in (x, y, shift))
    centred = total - total.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 5), min_size=1, max_size=2),
    st.integers(1, 70),
    st.sampled_from([1e-12, 1e-5, 0.1]),
    st.sampled_from([0.0, 300.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(seed: int, lead: list[int], width: int, epsilon: float, offset: float):
    given_ = arrays(seed, (*lead, width), offset)
    wanted = oracle(**given_, epsilon=epsilon)
    # What rounding leaves of numbers that are as good as equal counts where epsilon is small.
    spread = np.sqrt((given_["x"] + given_["y"] + given_["shift"]).var(-1).min() + epsilon)
    allowed = 1e-6 * (1 + np.abs(wanted).max()) * (1 + offset) * max(1.0, 1 / spread)
    found = [run_node(add_norm.body(), given_, {"epsilon": epsilon}, library)[0] for library in libraries]
    for values in found:
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, wanted, rtol=0, atol=allowed)


def test_the_schema_is_registered():
    assert onnx.defs.has("AddNorm", DOMAIN)


@needs_kernels
def test_threads_share_many_rows():
    given_ = arrays(0, (4, 130, 384))
    one, four = (run_node(add_norm.body(), given_, {"epsilon": 1e-12}, CPU_KERNELS, threads)[0] for threads in (1, 4))
    assert one.tobytes() == four.tobytes()
    np.testing.assert_allclose(one, oracle(**given_, epsilon=1e-12), rtol=0, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("name", ["y", "shift", "scale", "bias"])
def test_shapes_that_do_not_fit_are_refused(name: str):
    given_ = arrays(0, (2, 3, 8))
    given_[name] = given_[name][..., :4]
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="AddNorm: x and y must be"):
        run_node(add_norm.body(), given_, {"epsilon": 1e-12}, CPU_KERNELS)

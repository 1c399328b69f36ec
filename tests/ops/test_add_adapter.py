"""AddAdapter and AddSwishAdapter against a float64 oracle: function body and native kernel."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node

from coda_ops import DOMAIN, add_adapter, native

libraries = [None] if native.library() is None else [None, CPU_KERNELS]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
BODIES = {"AddAdapter": add_adapter.body, "AddSwishAdapter": add_adapter.swish_body}


def drawn(seed: int, lead: tuple[int, ...], width: int, bottleneck: int, size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"residual": (*lead, width), "x": (*lead, width), "down": (width, bottleneck), "down_bias": (bottleneck,)}
    shapes |= {"up": (bottleneck, width), "up_bias": (width,)}
    made = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    made["x"] *= size
    return {name: array.astype(np.float32) for name, array in made.items()}


def oracle(operator: str, residual: Any, x: Any, down: Any, down_bias: Any, up: Any, up_bias: Any) -> np.ndarray:
    shifted = x.astype(np.float64) @ down + down_bias
    hidden = (
        np.maximum(shifted, 0) if operator == "AddAdapter" else shifted / (1 + np.exp(-np.clip(shifted, -700, None)))
    )
    return residual + (hidden @ up + up_bias)


@pytest.mark.parametrize("operator", BODIES)
@given(
    seed=st.integers(0, 2**31),
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    width=st.one_of(st.integers(1, 40), st.sampled_from([64, 96])),
    bottleneck=st.one_of(st.integers(1, 20), st.sampled_from([32, 64])),
    size=st.sampled_from([1e-3, 1.0, 100.0]),  # 100: exponentials of either sign that overflow
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(
    operator: str, seed: int, lead: list[int], width: int, bottleneck: int, size: float
):
    given_ = drawn(seed, tuple(lead), width, bottleneck, size)
    wanted = oracle(operator, **given_)
    found = [run_node(BODIES[operator](), given_, None, library)[0] for library in libraries]
    for values in found:
        np.testing.assert_allclose(values, wanted, rtol=0, atol=3e-6 * (1 + size) * width**0.5 * (1 + bottleneck))


@needs_kernels
@pytest.mark.parametrize("operator", BODIES)
@pytest.mark.parametrize(("width", "bottleneck"), [(384, 64), (40, 24)])
def test_company_and_threads_change_nothing(operator: str, width: int, bottleneck: int):
    given_ = drawn(3, (3, 71), width, bottleneck)
    body = BODIES[operator]()
    one, four = (run_node(body, given_, None, CPU_KERNELS, threads)[0] for threads in (1, 4))
    assert one.tobytes() == four.tobytes()
    alone = {name: array[1:2, 5:6] if name in ("residual", "x") else array for name, array in given_.items()}
    assert run_node(body, alone, None, CPU_KERNELS)[0].tobytes() == one[1:2, 5:6].tobytes()


@needs_kernels
def test_the_residual_may_be_what_it_reads():
    given_ = drawn(4, (2, 40), 64, 16)
    given_["residual"] = given_["x"]
    found = run_node(add_adapter.body(), given_, None, CPU_KERNELS)[0]
    np.testing.assert_allclose(found, oracle("AddAdapter", **given_), rtol=0, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("name", ["residual", "down_bias", "up", "up_bias"])
def test_shapes_that_do_not_fit_are_refused(name: str):
    given_ = drawn(0, (2, 3), 8, 4)
    given_[name] = given_[name][..., :2]
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="AddAdapter: residual and x must be"):
        run_node(add_adapter.body(), given_, None, CPU_KERNELS)


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operator", BODIES)
def test_what_is_no_number_stays_in_its_row(operator: str, value: float, library: Any):
    given_ = drawn(10, (2, 19), 40, 24)
    hurt = given_["x"].copy()
    hurt[1, 3, 7] = value
    wanted, found = (run_node(BODIES[operator](), {**given_, "x": x}, None, library)[0] for x in (given_["x"], hurt))
    if np.isnan(value):
        assert np.isnan(found[1, 3]).all()
    else:  # an infinity may be one, or none any more
        assert not np.isfinite(found[1, 3]).any()
    wanted[1, 3] = found[1, 3]
    np.testing.assert_array_equal(found, wanted)


def test_the_schemas_are_registered():
    assert all(onnx.defs.has(name, DOMAIN) for name in BODIES)

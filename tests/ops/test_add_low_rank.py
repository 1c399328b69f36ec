"""AddLowRank against a float64 oracle: function body and native kernel."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, run_node
from tests.ops.test_add_adapter import libraries, needs_kernels

from coda_ops import DOMAIN, add_low_rank


def drawn(seed: int, lead: tuple[int, ...], width: int, rank: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"residual": (*lead, width), "x": (*lead, width), "down": (width, rank), "up": (rank, width)}
    shapes["bias"] = (width,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def oracle(residual: Any, x: Any, down: Any, up: Any, bias: Any) -> np.ndarray:
    made: np.ndarray = residual + (x.astype(np.float64) @ down @ up + bias)
    return made


@given(
    seed=st.integers(0, 2**31),
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    width=st.one_of(st.integers(1, 40), st.sampled_from([64, 96])),
    rank=st.one_of(st.integers(1, 20), st.sampled_from([32, 64])),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_body_and_kernel_are_the_oracle(seed: int, lead: list[int], width: int, rank: int):
    given_ = drawn(seed, tuple(lead), width, rank)
    wanted = oracle(**given_)
    for library in libraries:
        found = run_node(add_low_rank.body(), given_, None, library)[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * width**0.5 * (1 + rank))


@pytest.mark.parametrize("library", libraries)
def test_what_is_negative_between_the_products_passes(library: Any):
    """Where a bottleneck would cut it off."""
    given_ = {name: -np.ones(shape, np.float32) for name, shape in (("down", (4, 2)), ("up", (2, 4)), ("bias", 4))}
    given_ = {"residual": np.zeros((3, 4), np.float32), "x": np.ones((3, 4), np.float32), **given_}
    np.testing.assert_array_equal(run_node(add_low_rank.body(), given_, None, library)[0], np.full((3, 4), 7.0))


@needs_kernels
@pytest.mark.parametrize(("width", "rank"), [(384, 64), (40, 24)])
def test_company_and_threads_change_nothing(width: int, rank: int):
    given_ = drawn(3, (3, 71), width, rank)
    body = add_low_rank.body()
    one, four = (run_node(body, given_, None, CPU_KERNELS, threads)[0] for threads in (1, 4))
    assert one.tobytes() == four.tobytes()
    alone = {name: array[1:2, 5:6] if name in ("residual", "x") else array for name, array in given_.items()}
    assert run_node(body, alone, None, CPU_KERNELS)[0].tobytes() == one[1:2, 5:6].tobytes()


@needs_kernels
def test_the_residual_may_be_what_it_reads():
    given_ = drawn(4, (2, 40), 64, 16)
    given_["residual"] = given_["x"]
    found = run_node(add_low_rank.body(), given_, None, CPU_KERNELS)[0]
    np.testing.assert_allclose(found, oracle(**given_), rtol=0, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("name", ["residual", "down", "up", "bias"])
def test_shapes_that_do_not_fit_are_refused(name: str):
    given_ = drawn(0, (2, 3), 8, 4)
    given_[name] = given_[name][..., :2]
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="AddLowRank: residual and x must be"):
        run_node(add_low_rank.body(), given_, None, CPU_KERNELS)


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_row(value: float, library: Any):
    given_ = drawn(10, (2, 19), 40, 24)
    hurt = given_["x"].copy()
    hurt[1, 3, 7] = value
    wanted, found = (run_node(add_low_rank.body(), {**given_, "x": x}, None, library)[0] for x in (given_["x"], hurt))
    assert not np.isfinite(found[1, 3]).any()
    wanted[1, 3] = found[1, 3]
    np.testing.assert_array_equal(found, wanted)


def test_the_schema_is_registered():
    assert onnx.defs.has("AddLowRank", DOMAIN)

"""Int8AddLowRank and Int8RouterLowRank against Int8Linear and float64: function body and native kernel."""

from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from tests.ops.one_node import CPU_KERNELS
from tests.ops.test_add_adapter import libraries, needs_kernels
from tests.ops.test_int8_add_adapter import layer, quantised
from tests.ops.test_int8_add_adapter import run as run_adapter

from coda_ops import DOMAIN, int8_add_low_rank

SIZES = [((1,), 1, 1), ((5,), 9, 4), ((2, 33), 64, 24), ((3, 70), 96, 17)]


run = partial(run_adapter, operators=int8_add_low_rank)


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(("lead", "width", "rank"), SIZES)
def test_it_is_two_linear_layers(library: Any, lead: tuple[int, ...], width: int, rank: int):
    given_ = quantised(7, lead, width, rank)
    y, hidden = run(given_, library)
    assert rank == 1 or hidden.min() < 0
    np.testing.assert_allclose(hidden, layer(given_["x"], given_, "down").numpy(), rtol=1e-6, atol=1e-5)
    # From the hidden numbers that it says it was given, the sum follows without a difference of one integer.
    np.testing.assert_allclose(y, given_["residual"] + layer(hidden, given_, "up").numpy(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_row(value: float, library: Any):
    given_ = quantised(10, (2, 19), 40, 24)
    hurt = given_["x"].copy()
    hurt[1, 3, 7] = value
    wanted, found = (run({**given_, "x": x}, library)[0] for x in (given_["x"], hurt))
    assert np.isnan(found[1, 3]).all()
    wanted[1, 3] = found[1, 3]
    np.testing.assert_array_equal(found, wanted)


@needs_kernels
def test_company_and_threads_change_nothing():
    given_ = {**quantised(8, (3, 71), 64, 24), "router": np.ones((64, 1), np.float32)}
    one, four = (run(given_, CPU_KERNELS, threads) for threads in (1, 4))
    assert [a.tobytes() for a in one] == [b.tobytes() for b in four]
    alone = {name: array[2:3] if name in ("residual", "x") else array for name, array in given_.items()}
    assert run(alone, CPU_KERNELS)[0].tobytes() == one[0][2:3].tobytes()


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(("lead", "width", "rank"), SIZES)
def test_with_a_router_it_is_the_map_and_the_scores(library: Any, lead: tuple[int, ...], width: int, rank: int):
    plain = quantised(9, lead, width, rank)
    router = np.random.default_rng(9).normal(size=(width, 1)).astype(np.float32)
    y, hidden, scores = run({**plain, "router": router}, library)
    for found, wanted in zip((y, hidden), run(plain, library), strict=True):
        assert found.tobytes() == wanted.tobytes()
    exact = (plain["x"].astype(np.float64) @ router.astype(np.float64))[..., 0]
    np.testing.assert_allclose(scores, exact, rtol=0, atol=2e-6 * max(1.0, np.abs(exact).max()))


def test_the_schemas_are_registered():
    assert all(onnx.defs.has(name, DOMAIN) for name in ("Int8AddLowRank", "Int8RouterLowRank"))

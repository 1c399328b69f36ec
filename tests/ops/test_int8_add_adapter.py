"""Int8AddAdapter and Int8RouterAdapter against Int8Linear and float64: function body and native kernel."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.ops.one_node import CPU_KERNELS, needs_int8_kernels, open_node
from tests.ops.test_add_adapter import drawn, libraries, needs_kernels

from coda_ops import DOMAIN, int8_add_adapter, int8_linear


def quantised(seed: int, lead: tuple[int, ...], width: int, bottleneck: int) -> dict[str, np.ndarray]:
    given_ = drawn(seed, lead, width, bottleneck)
    down, up = (int8_linear.quantise(torch.tensor(given_[name])) for name in ("down", "up"))
    return {
        "residual": given_["residual"],
        "x": given_["x"],
        "down": down.weight.numpy(),
        "down_scale": down.scale.numpy(),
        "down_bias": given_["down_bias"],
        "up": up.weight.numpy(),
        "up_scale": up.scale.numpy(),
        "up_bias": given_["up_bias"],
    }


def run(
    given_: dict[str, np.ndarray], library: Any, threads: int = 1, operators: Any = int8_add_adapter
) -> list[np.ndarray]:
    """The sum, what the second layer is given and, with a router, scores, of one node whose weights are constants.

    Args:
        operators: the module of one without a router and one with.
    """
    constants = tuple(name for name in given_ if name not in ("residual", "x"))
    body = operators.router_body() if "router" in given_ else operators.body()
    session = open_node(body, given_, None, library, threads, constants)
    found: list[np.ndarray] = session.run(None, {name: given_[name] for name in ("residual", "x")})
    return found


def layer(x: np.ndarray, given_: dict[str, np.ndarray], name: str) -> torch.Tensor:
    """One of the two linear layers, by torch."""
    weight, scale, bias = (torch.tensor(given_[f"{name}{part}"]) for part in ("", "_scale", "_bias"))
    return int8_linear.int8_linear(torch.tensor(x), weight, scale, bias)


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(
    ("lead", "width", "bottleneck"), [((1,), 1, 1), ((5,), 9, 4), ((2, 33), 64, 24), ((3, 70), 96, 17)]
)
def test_it_is_two_linear_layers(library: Any, lead: tuple[int, ...], width: int, bottleneck: int):
    given_ = quantised(7, lead, width, bottleneck)
    y, hidden = run(given_, library)
    np.testing.assert_allclose(hidden, layer(given_["x"], given_, "down").relu().numpy(), rtol=1e-6, atol=1e-5)
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
    given_ = quantised(8, (3, 71), 64, 24)
    one, four = (run(given_, CPU_KERNELS, threads) for threads in (1, 4))
    for a, b in zip(one, four, strict=True):
        assert a.tobytes() == b.tobytes()
    alone = {name: array[2:3] if name in ("residual", "x") else array for name, array in given_.items()}
    assert run(alone, CPU_KERNELS)[0].tobytes() == one[0][2:3].tobytes()


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(
    ("lead", "width", "bottleneck"), [((1,), 1, 1), ((5,), 9, 4), ((2, 33), 64, 24), ((3, 70), 96, 17)]
)
def test_with_a_router_it_is_the_adapter_and_the_scores(
    library: Any, lead: tuple[int, ...], width: int, bottleneck: int
):
    plain = quantised(9, lead, width, bottleneck)
    router = np.random.default_rng(9).normal(size=(width, 1)).astype(np.float32)
    y, hidden, scores = run({**plain, "router": router}, library)
    for found, wanted in zip((y, hidden), run(plain, library), strict=True):
        assert found.tobytes() == wanted.tobytes()
    exact = (plain["x"].astype(np.float64) @ router.astype(np.float64))[..., 0]
    np.testing.assert_allclose(scores, exact, rtol=0, atol=2e-6 * max(1.0, np.abs(exact).max()))


@needs_kernels
def test_scores_do_not_depend_on_threads():
    given_ = {**quantised(8, (3, 71), 64, 24), "router": np.ones((64, 1), np.float32)}
    one, four = (run(given_, CPU_KERNELS, threads) for threads in (1, 4))
    assert [a.tobytes() for a in one] == [b.tobytes() for b in four]


@needs_int8_kernels
def test_a_router_of_another_width_is_refused():
    given_ = {**quantised(8, (3, 7), 64, 24), "router": np.ones((63, 1), np.float32)}
    with pytest.raises(Exception, match=r"router must be \[width, 1\]"):
        run(given_, CPU_KERNELS)


def test_the_schemas_are_registered():
    assert all(onnx.defs.has(name, DOMAIN) for name in ("Int8AddAdapter", "Int8RouterAdapter"))

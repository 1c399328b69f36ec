"""AddAdapter and its kin against float64 oracles: torch form, function body and native kernel."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import needs_int8_kernels, open_node, run_node

from coda_ops import DOMAIN, add_adapter, int8_add_adapter, int8_linear, native
from coda_ops.int8_linear import Int8Weights

libraries = [None] if native.library() is None else [None, native.LIBRARY]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built")
OPERATORS = tuple(add_adapter.ACTIVATIONS)


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


@pytest.mark.parametrize("operator", OPERATORS)
@given(
    seed=st.integers(0, 2**31),
    lead=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    width=st.one_of(st.integers(1, 40), st.sampled_from([64, 96])),
    bottleneck=st.one_of(st.integers(1, 20), st.sampled_from([32, 64])),
    size=st.sampled_from([1e-3, 1.0, 100.0]),  # 100: exponentials of either sign that overflow
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_all_three_are_the_oracle(operator: str, seed: int, lead: list[int], width: int, bottleneck: int, size: float):
    given_ = drawn(seed, tuple(lead), width, bottleneck, size)
    wanted = oracle(operator, **given_)
    eager = add_adapter.add_adapter(*(torch.tensor(a) for a in given_.values()), operator=operator).numpy()
    found = [run_node(add_adapter.body(operator), given_, None, library)[0] for library in libraries]
    for values in (eager, *found):
        np.testing.assert_allclose(values, wanted, rtol=0, atol=3e-6 * (1 + size) * width**0.5 * (1 + bottleneck))


@needs_kernels
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("width", "bottleneck"), [(384, 64), (40, 24)])
def test_company_and_threads_change_nothing(operator: str, width: int, bottleneck: int):
    given_ = drawn(3, (3, 71), width, bottleneck)
    body = add_adapter.body(operator)
    one, four = (run_node(body, given_, None, native.LIBRARY, threads)[0] for threads in (1, 4))
    assert one.tobytes() == four.tobytes()
    alone = {name: array[1:2, 5:6] if name in ("residual", "x") else array for name, array in given_.items()}
    assert run_node(body, alone, None, native.LIBRARY)[0].tobytes() == one[1:2, 5:6].tobytes()


@needs_kernels
def test_the_residual_may_be_what_it_reads():
    given_ = drawn(4, (2, 40), 64, 16)
    given_["residual"] = given_["x"]
    found = run_node(add_adapter.body("AddAdapter"), given_, None, native.LIBRARY)[0]
    np.testing.assert_allclose(found, oracle("AddAdapter", **given_), rtol=0, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("name", ["residual", "down_bias", "up", "up_bias"])
def test_shapes_that_do_not_fit_are_refused(name: str):
    given_ = drawn(0, (2, 3), 8, 4)
    given_[name] = given_[name][..., :2]
    fails = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(fails, match="AddAdapter: residual and x must be"):
        run_node(add_adapter.body("AddAdapter"), given_, None, native.LIBRARY)


def rounded(seed: int, lead: tuple[int, ...], width: int, bottleneck: int) -> dict[str, np.ndarray]:
    given_ = drawn(seed, lead, width, bottleneck)
    down, up = (int8_linear.quantize(torch.tensor(given_[name])) for name in ("down", "up"))
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


def run_rounded(given_: dict[str, np.ndarray], library: Any, threads: int = 1) -> list[np.ndarray]:
    """The sum, what lies between the products and, with a router, scores, of one node whose weights are constants."""
    constants = tuple(name for name in given_ if name not in ("residual", "x"))
    body = int8_add_adapter.router_body() if "router" in given_ else int8_add_adapter.body()
    session = open_node(body, given_, None, library, threads, constants)
    found: list[np.ndarray] = session.run(None, {name: given_[name] for name in ("residual", "x")})
    return found


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(
    ("lead", "width", "bottleneck"), [((1,), 1, 1), ((5,), 9, 4), ((2, 33), 64, 24), ((3, 70), 96, 17)]
)
def test_in_eight_bits_it_is_two_products(library: Any, lead: tuple[int, ...], width: int, bottleneck: int):
    given_ = rounded(7, lead, width, bottleneck)
    tensors = {name: torch.tensor(array) for name, array in given_.items()}
    down, up = (Int8Weights(tensors[name], tensors[f"{name}_scale"]) for name in ("down", "up"))
    wanted, middle = int8_add_adapter.int8_add_adapter(
        tensors["residual"], tensors["x"], down, tensors["down_bias"], up, tensors["up_bias"]
    )
    y, hidden = run_rounded(given_, library)
    np.testing.assert_allclose(hidden, middle.numpy(), rtol=1e-6, atol=1e-5)
    # From the hidden numbers that it says it multiplied, the sum follows without a level's difference.
    after = tensors["residual"] + int8_linear.int8_linear(torch.tensor(hidden), *up, tensors["up_bias"])
    np.testing.assert_allclose(y, after.numpy(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(y, wanted.numpy(), rtol=0, atol=0.05 * float(wanted.abs().max()))


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operator", [*OPERATORS, "Int8AddAdapter"])
def test_what_is_no_number_stays_in_its_row(operator: str, value: float, library: Any):
    given_ = (rounded if operator == "Int8AddAdapter" else drawn)(10, (2, 19), 40, 24)
    clean = given_["x"].copy()

    def run(x: np.ndarray) -> np.ndarray:
        if operator == "Int8AddAdapter":
            return run_rounded({**given_, "x": x}, library)[0]
        found: np.ndarray = run_node(add_adapter.body(operator), {**given_, "x": x}, None, library)[0]
        return found

    hurt = clean.copy()
    hurt[1, 3, 7] = value
    wanted, found = run(clean), run(hurt)
    if np.isnan(value) or operator == "Int8AddAdapter":
        assert np.isnan(found[1, 3]).all()
    else:  # in floats an infinity may be one, or none any more
        assert not np.isfinite(found[1, 3]).any()
    wanted[1, 3] = found[1, 3]
    np.testing.assert_array_equal(found, wanted)


@needs_kernels
def test_in_eight_bits_company_and_threads_change_nothing():
    given_ = rounded(8, (3, 71), 64, 24)
    one, four = (run_rounded(given_, native.LIBRARY, threads) for threads in (1, 4))
    for a, b in zip(one, four, strict=True):
        assert a.tobytes() == b.tobytes()
    alone = {name: array[2:3] if name in ("residual", "x") else array for name, array in given_.items()}
    assert run_rounded(alone, native.LIBRARY)[0].tobytes() == one[0][2:3].tobytes()


@pytest.mark.parametrize("library", libraries)
@pytest.mark.parametrize(
    ("lead", "width", "bottleneck"), [((1,), 1, 1), ((5,), 9, 4), ((2, 33), 64, 24), ((3, 70), 96, 17)]
)
def test_with_a_router_it_is_the_adapter_and_the_scores(
    library: Any, lead: tuple[int, ...], width: int, bottleneck: int
):
    plain = rounded(9, lead, width, bottleneck)
    router = np.random.default_rng(9).normal(size=(width, 1)).astype(np.float32)
    y, hidden, scores = run_rounded({**plain, "router": router}, library)
    for found, wanted in zip((y, hidden), run_rounded(plain, library), strict=True):
        assert found.tobytes() == wanted.tobytes()
    exact = (plain["x"].astype(np.float64) @ router.astype(np.float64))[..., 0]
    np.testing.assert_allclose(scores, exact, rtol=0, atol=2e-6 * max(1.0, np.abs(exact).max()))
    tensors = {name: torch.tensor(array) for name, array in plain.items()}
    down, up = (Int8Weights(tensors[name], tensors[f"{name}_scale"]) for name in ("down", "up"))
    torch_form = int8_add_adapter.int8_router_adapter(
        tensors["residual"], tensors["x"], down, tensors["down_bias"], up, tensors["up_bias"], torch.tensor(router)
    )
    np.testing.assert_allclose(torch_form[2].numpy(), exact, rtol=0, atol=2e-6 * max(1.0, np.abs(exact).max()))


@needs_kernels
def test_scores_do_not_depend_on_threads():
    given_ = {**rounded(8, (3, 71), 64, 24), "router": np.ones((64, 1), np.float32)}
    one, four = (run_rounded(given_, native.LIBRARY, threads) for threads in (1, 4))
    assert [a.tobytes() for a in one] == [b.tobytes() for b in four]


@needs_int8_kernels
def test_a_router_of_another_width_is_refused():
    given_ = {**rounded(8, (3, 7), 64, 24), "router": np.ones((63, 1), np.float32)}
    with pytest.raises(Exception, match=r"router must be \[width, 1\]"):
        run_rounded(given_, native.LIBRARY)


def test_the_schemas_are_registered():
    assert all(onnx.defs.has(name, DOMAIN) for name in (*OPERATORS, "Int8AddAdapter", "Int8RouterAdapter"))

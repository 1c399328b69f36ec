"""Int8Linear against integers in numpy: torch operator, body, kernel, and what quantising may cost; Int8LinearGelu."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import CPU_KERNELS, needs_int8_kernels, open_node

from coda_ops import DOMAIN, native
from coda_ops.int8_linear import body, gelu_body, int8_linear, quantise

BUILT = pytest.mark.skipif(native.library() is None, reason="not built")
KERNELS = ["body", *(pytest.param(name, marks=BUILT) for name in ("", "amx-int8", "avx512-vnni", "avx-vnni", "avx2"))]


@pytest.fixture(params=KERNELS)
def library(request, monkeypatch):
    """What runs the operator: its body, the kernel that this machine gets, and what it would get with less."""
    if request.param == "body":
        return None
    if request.param:
        monkeypatch.setenv("CODA_ISA", request.param)
    return CPU_KERNELS


def oracle(x, weight, scale, bias):
    """A token at a time, the matmul in integers."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        highest = np.abs(row).max()
        x_scale = np.float32(highest / np.float32(127)) if highest > 0 else np.float32(1)
        quantised = np.round(row / x_scale).astype(np.int64)  # half to even
        accumulated = quantised @ (weight.astype(np.int64) - 128)
        rows.append(accumulated.astype(np.float64) * x_scale * scale + bias)
    return np.array(rows).reshape(*x.shape[:-1], weight.shape[1])


def drawn(seed, lead=(3,), inputs=7, outputs=5):
    """x, weight, scale, bias."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*lead, inputs)).astype(np.float32) * rng.choice([1e-3, 1, 50], size=(*lead, 1))
    weight = rng.integers(1, 256, size=(inputs, outputs)).astype(np.uint8)
    scale, bias = rng.random(outputs).astype(np.float32) * 0.01, rng.normal(size=outputs).astype(np.float32)
    return x.astype(np.float32), weight, scale, bias


def node(arrays, library=None, threads=1):
    """One node whose weights are constants, as in a compiled model."""
    names = ("x", "weight", "scale", "bias")
    inputs = dict(zip(names, arrays, strict=True))
    return open_node(body(), inputs, library=library, threads=threads, constants=names[1:]).run(None, {"x": arrays[0]})[
        0
    ]


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 70), st.integers(1, 60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_the_formula(seed, rows, inputs, outputs):
    arrays = drawn(seed, (rows,), inputs, outputs)
    wanted = oracle(*arrays)
    got = int8_linear(*map(torch.tensor, arrays)).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lead", "inputs", "outputs"),
    [
        ((1,), 1, 1),
        ((5,), 7, 25),
        ((33,), 64, 48),
        ((2, 3), 9, 16),
        ((3, 41), 96, 33),
        ((130,), 384, 384),
        ((600,), 70, 80),
    ],
)
def test_body_and_kernel_are_the_torch_operator(library, lead, inputs, outputs):
    arrays = drawn(0, lead, inputs, outputs)
    arrays[0].reshape(-1, inputs)[0] = 0
    wanted = int8_linear(*map(torch.tensor, arrays)).numpy()
    got = node(arrays, library)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    if library is not None:
        assert node(arrays, library, threads=3).tobytes() == got.tobytes()


def test_extremes_are_exact(library):
    """The largest sums there are, where processors without VNNI would saturate; a half rounds to even."""
    inputs = 4096
    weight = np.array([[255, 1]] * inputs, dtype=np.uint8)
    x = np.ones((2, inputs), np.float32)
    x[1] = 0.5 / 127 * np.float32(127)  # half of the highest: 63.5, which is 64
    x[1, 0] = 1.0
    one, none = np.ones(2, np.float32), np.zeros(2, np.float32)
    got = node((x, weight, one, none), library)
    x_scale = np.float32(1) / np.float32(127)
    sums = np.array([127 * 127 * inputs, (127 + 64 * (inputs - 1)) * 127])[:, None] * [1, -1]
    np.testing.assert_allclose(got, sums * x_scale, rtol=1e-6)


def test_a_token_does_not_depend_on_its_company(library):
    arrays = drawn(1, (12,), 40, 20)
    together = node(arrays, library)
    for row in range(12):
        alone = node((arrays[0][row : row + 1], *arrays[1:]), library)
        assert alone.tobytes() == together[row : row + 1].tobytes()


def test_every_half_rounds_to_even_and_every_size_keeps_its_integers(library):
    """Ratios at and beside each half, where multiplying by an inverse would tell wrong; rows from tiny to huge."""
    halves = np.arange(-127, 127) + 0.5
    x = np.concatenate([[127.0], halves, np.nextafter(halves, 200, dtype=np.float32)]).astype(np.float32)
    sizes = np.float32([1e-42, 1e-38, 1e-31, 1e-20, 1, 3, 1e20, 1e30])
    x = x * sizes[:, None]
    weight = np.random.default_rng(0).integers(1, 256, size=(x.shape[1], 3)).astype(np.uint8)
    one, none = np.ones(3, np.float32), np.zeros(3, np.float32)
    got = node((x, weight, one, none), library)
    wanted = oracle(x, weight, one, none)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-44)


@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_weights_are_off_by_half_a_scale_at_most(seed, inputs, outputs):
    weight = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))
    weight[:, 0] = 0
    quantised, scale = quantise(weight)
    assert quantised.dtype == torch.uint8
    assert int(quantised.min()) >= 1
    back = (quantised.double() - 128) * scale
    assert ((back - weight).abs() <= scale * 0.5001).all()
    assert (back[:, 0] == 0).all()


def test_a_layer_loses_about_a_percent():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 384), torch.randn(384, 384) / 20
    exact, quantised = x @ weight, int8_linear(x, *quantise(weight), torch.zeros(384))
    assert float((quantised - exact).norm() / exact.norm()) < 0.015


def test_opcheck_and_schema():
    arrays = [torch.tensor(array) for array in drawn(2)]
    torch.library.opcheck(
        torch.ops.coda.int8_linear.default, tuple(arrays), test_utils=("test_schema", "test_faketensor")
    )
    assert onnx.defs.has("Int8Linear", DOMAIN)


@needs_int8_kernels
def test_the_kernel_refuses_what_does_not_fit():
    x, weight, scale, bias = drawn(3)
    with pytest.raises(Exception, match=r"weight must be \[inputs, outputs\], scale and bias \[outputs\]"):
        node((x, weight, scale[:-1], bias), CPU_KERNELS)
    with pytest.raises(Exception, match=r"x must be \[\.\.\., inputs\]"):
        node((x[:, :-1], weight, scale, bias), CPU_KERNELS)
    inputs = dict(zip(("x", "weight", "scale", "bias"), (x, weight, scale, bias), strict=True))
    with pytest.raises(Exception, match="must be constants"):
        open_node(body(), inputs, library=CPU_KERNELS)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("inputs", [1, 5, 8, 64, 70, 384])
def test_what_is_not_finite_stays_so_and_in_its_row(library, inputs, value):
    """Wherever it stands in a row: in a register or behind the last whole one, before or after the largest number."""
    places = sorted({i for i in (*range(min(inputs, 17)), 31, 63, 64, inputs // 2, inputs - 1) if i < inputs})
    arrays = drawn(1, (2 * len(places) + 1,), inputs, 33)
    arrays[1][:, 0] = 128  # 0: a product with it would hide an infinity
    arrays[0][0] = 0
    finite = int8_linear(*map(torch.tensor, arrays)).numpy()
    hurt = np.arange(len(places)) * 2 + 1
    arrays[0][hurt, places] = value
    wanted = int8_linear(*map(torch.tensor, arrays)).numpy()
    assert np.isnan(wanted[hurt]).all()
    got = node(arrays, library)
    assert np.isnan(got[hurt]).all()
    kept = np.setdiff1d(np.arange(len(got)), hurt)
    np.testing.assert_allclose(got[kept], finite[kept], rtol=0, atol=2e-6 * np.abs(finite).max())


def test_numbers_too_small_for_a_scale_are_nothing(library):
    arrays = drawn(2, (2,), 9, 5)
    arrays[0][0] = 1e-45
    got = node(arrays, library)
    np.testing.assert_array_equal(got[0], arrays[3])
    np.testing.assert_allclose(int8_linear(*map(torch.tensor, arrays)).numpy()[0], arrays[3])


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (5, 7, 25), (300, 64, 144)])
@pytest.mark.parametrize("threads", [1, 3])
def test_its_gelu(library, rows, inputs, outputs, threads):
    rng = np.random.default_rng(rows)
    weight = quantise(torch.tensor(rng.normal(size=(inputs, outputs))).float())
    arrays = {"x": rng.normal(size=(rows, inputs)).astype(np.float32), "weight": weight.weight.numpy()}
    arrays |= {"scale": weight.scale.numpy(), "bias": rng.normal(size=outputs).astype(np.float32)}
    wanted = F.gelu(int8_linear(*map(torch.tensor, arrays.values()))).numpy()
    constants = ("weight", "scale", "bias")
    session = open_node(gelu_body(), arrays, None, library, threads, constants)
    np.testing.assert_allclose(session.run(None, {"x": arrays["x"]})[0], wanted, rtol=1e-5, atol=1e-5)

"""Int8StaticLinear against integers in numpy, the scale that a range asks for, and what quantising may cost."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import run_node

from coda_ops import DOMAIN, int8_linear
from coda_ops.int8_static_linear import body, int8_static_linear, quantisation_of, quantise, quantise_weight
from coda_targets.runtimes.saturation import saturates


def drawn(seed, rows=3, inputs=7, outputs=5):
    """x, weight, scale, bias, x_scale and x_zero_point; a few activations lie outside of the range."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)).astype(np.float32) * 3
    most = 64 if saturates() else 127  # 2 · 255 · 64 is within 16 bits, where a processor may cut the sums off
    weight = rng.integers(-most, most + 1, size=(inputs, outputs)).astype(np.int8)
    scale, bias = rng.random(outputs).astype(np.float32) * 0.01, rng.normal(size=outputs).astype(np.float32)
    quantisation = quantisation_of(float(np.quantile(x, 0.05)), float(np.quantile(x, 0.95)))
    return (*map(torch.tensor, (x, weight, scale, bias)), *quantisation)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 70), st.integers(1, 60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_the_formula(seed, rows, inputs, outputs):
    arguments = drawn(seed, rows, inputs, outputs)
    x, weight, scale, bias, x_scale, zero_point = (argument.numpy() for argument in arguments)
    quantised = np.clip(np.round(x / x_scale) + zero_point, 0, 255).astype(np.int64) - int(zero_point)
    wanted = (quantised @ weight.astype(np.int64)).astype(np.float64) * np.float64(x_scale) * scale + bias
    np.testing.assert_allclose(int8_static_linear(*arguments).numpy(), wanted, rtol=1e-5, atol=1e-5)
    (found,) = run_node(body(), dict(zip(body().input, (a.numpy() for a in arguments), strict=True)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * (1 + np.abs(wanted).max()))


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_integers_reach_from_end_to_end_and_hold_0(one, other):
    low, high = min(one, other), max(one, other)
    scale, zero_point = quantisation_of(low, high)
    numbers = torch.tensor([low, 0.0, high])
    found = quantise(numbers, scale, zero_point)
    assert found[1] == zero_point
    back = (found - zero_point) * scale
    # 0 has an integer of its own, which moves all of them by up to half a scale.
    assert ((back - numbers).abs() <= 1.001 * scale).all()
    width = (max(high, 0) - min(low, 0)) / 255
    assert float(scale) == pytest.approx(width if width > 1.2e-38 else 1.0, rel=1e-5)


def test_halves_round_to_even_and_what_lies_outside_becomes_the_nearest():
    scale, zero_point = torch.tensor(1.0), torch.tensor(100, dtype=torch.uint8)
    x = torch.tensor([-100.6, -1e30, -1.5, -0.5, 0.5, 1.5, 2.5, 155.4, 155.6, 1e30])
    assert quantise(x, scale, zero_point).tolist() == [0, 0, 98, 100, 100, 102, 102, 255, 255, 255]


def test_weights_are_those_of_int8_linear():
    weight = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    signed, raised = quantise_weight(weight), int8_linear.quantise(weight)
    assert signed.weight.dtype == torch.int8
    assert torch.equal(signed.weight.int() + 128, raised.weight.int())
    assert torch.equal(signed.scale, raised.scale)


def test_a_layer_loses_little():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 384), torch.randn(384, 384) / 20
    quantised = int8_static_linear(
        x, *quantise_weight(weight), torch.zeros(384), *quantisation_of(float(x.min()), float(x.max()))
    )
    exact = x @ weight
    assert float((quantised - exact).norm() / exact.norm()) < 0.02


def test_opcheck_and_schema():
    torch.library.opcheck(
        torch.ops.coda.int8_static_linear.default, drawn(2), test_utils=("test_schema", "test_faketensor")
    )
    assert onnx.defs.has("Int8StaticLinear", DOMAIN)

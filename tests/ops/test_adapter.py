"""Adapter against numpy, its gradient and its ONNX body."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import run_node

from coda_ops import DOMAIN
from coda_ops.adapter import adapter, body

NAMES = ("x", "down", "down_bias", "up", "up_bias")


def oracle(x, down, down_bias, up, up_bias):
    return np.maximum(x.astype(np.float64) @ down + down_bias, 0) @ up + up_bias


def drawn(seed, lead=(2, 6), width=5, bottleneck=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = ((*lead, width), (width, bottleneck), (bottleneck,), (bottleneck, width), (width,))
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_bottleneck_is_the_oracles(seed, lead, width, bottleneck):
    arrays = drawn(seed, tuple(lead), width, bottleneck)
    np.testing.assert_allclose(adapter(*map(torch.tensor, arrays)).numpy(), oracle(*arrays), rtol=0, atol=1e-12)


def test_gradients_in_float64():
    leaves = [torch.tensor(array, requires_grad=True) for array in drawn(0)]
    assert torch.autograd.gradcheck(adapter, leaves)


def test_a_dead_bottleneck_passes_its_bias_alone():
    x, down, down_bias, up, up_bias = map(torch.tensor, drawn(1))
    x.requires_grad_()
    y = adapter(x, down, down_bias - 1e6, up, up_bias)
    assert torch.equal(y, up_bias.expand_as(y))
    y.sum().backward()
    assert (x.grad == 0).all()


def test_opcheck():
    leaves = tuple(torch.tensor(a, requires_grad=True) for a in drawn(2, dtype=np.float32))
    torch.library.opcheck(torch.ops.coda.adapter.default, leaves)


def test_the_schema_is_registered():
    assert onnx.defs.has("Adapter", DOMAIN)


@pytest.mark.parametrize("lead", [(1, 1), (3, 7)])
def test_the_onnx_body_is_the_torch_operator(lead):
    arrays = drawn(3, lead, 8, 4, np.float32)
    (y,) = run_node(body(), dict(zip(NAMES, arrays, strict=True)))
    np.testing.assert_allclose(y, adapter(*map(torch.tensor, arrays)).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(y, oracle(*arrays), rtol=0, atol=1e-5)

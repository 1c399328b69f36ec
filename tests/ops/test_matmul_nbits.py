"""Int4Linear: its packing, its product and its body."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import open_node

from coda_ops import DOMAIN
from coda_ops.int4_linear import body, dequantize, int4_linear, quantize


def oracle(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A number at a time, in float64."""
    inputs, outputs = 2 * weight.shape[0], weight.shape[1]
    size = inputs // scale.shape[0]
    dense = np.zeros((inputs, outputs))
    for i in range(inputs):
        for j in range(outputs):
            byte = int(weight[i % weight.shape[0], j])
            level = byte // 16 if i >= weight.shape[0] else byte % 16
            dense[i, j] = (level - 8) * float(scale[i // size, j])
    return dense


def drawn(seed: int, rows: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight, scale = quantize(torch.tensor(rng.normal(size=(inputs, outputs)) * rng.choice([1e-3, 1, 9], size=outputs)))
    x, bias = rng.normal(size=(rows, inputs)).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
    return x, weight.numpy(), scale.numpy(), bias


@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from([2, 6, 16, 32, 48, 64, 96]), st.integers(1, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_torch_and_body_are_the_formula(seed: int, rows: int, inputs: int, outputs: int):
    x, weight, scale, bias = drawn(seed, rows, inputs, outputs)
    dense = oracle(weight, scale)
    np.testing.assert_allclose(dequantize(torch.tensor(weight), torch.tensor(scale)).numpy(), dense, rtol=1e-6)
    wanted = x.astype(np.float64) @ dense + bias
    limit = 1e-5 * (1 + np.abs(wanted).max())
    got = int4_linear(*map(torch.tensor, (x, weight, scale, bias))).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=limit)
    inputs_of = {"x": x, "weight": weight, "scale": scale, "bias": bias}
    session = open_node(body(), inputs_of, constants=("weight", "scale", "bias"))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, rtol=0, atol=limit)


@given(st.integers(0, 2**31), st.sampled_from([2, 32, 80]), st.integers(1, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_weights_are_rounded_to_half_a_level(seed: int, inputs: int, outputs: int):
    weight = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))
    weight[:, 0] = 0
    levels, scale = quantize(weight)
    assert levels.dtype == torch.uint8
    assert levels.shape == (inputs // 2, outputs)
    back = dequantize(levels, scale)
    assert ((back - weight).abs() <= scale.repeat_interleave(inputs // len(scale), 0) * 0.5001).all()
    assert (back[:, 0] == 0).all()


def test_groups_of_thirty_two_where_they_fit():
    assert [len(quantize(torch.ones(inputs, 1)).scale) for inputs in (32, 384, 48, 6)] == [1, 12, 3, 3]


def test_opcheck():
    x, weight, scale, bias = map(torch.tensor, drawn(0, 3, 32, 4))
    torch.library.opcheck(torch.ops.coda.int4_linear.default, (x, weight, scale, bias))


def test_the_schema_is_registered():
    assert onnx.defs.has("Int4Linear", DOMAIN)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_any_number_of_leading_axes(lead: tuple[int, ...]):
    _, weight, scale, bias = map(torch.tensor, drawn(0, 1, 32, 4))
    assert int4_linear(torch.zeros(*lead, 32), weight, scale, bias).shape == (*lead, 4)

"""TakeTokens against numpy, its gradient and its ONNX body."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.one_node import run_node

from coda_ops import DOMAIN
from coda_ops.take_tokens import body, openvino_body, take_tokens


def oracle(x, indices):
    return np.stack([x[b, indices[b]] for b in range(len(x))])


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_tokens_are_copied_bit_for_bit(batch, tokens, slots, width, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, tokens, width))
    indices = rng.integers(0, tokens, size=(batch, slots))
    np.testing.assert_array_equal(take_tokens(torch.tensor(x), torch.tensor(indices)).numpy(), oracle(x, indices))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_is_kept(dtype):
    assert take_tokens(torch.zeros(1, 3, 2, dtype=dtype), torch.zeros(1, 2, dtype=torch.int64)).dtype == dtype


def test_gradients_in_float64():
    """With a repeated index too: its gradients add up."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 3, 3], [4, 1, 2]])
    assert torch.autograd.gradcheck(lambda t: take_tokens(t, indices), x)


def test_opcheck():
    x = torch.randn(2, 5, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.coda.take_tokens.default, (x, torch.tensor([[0, 3], [4, 1]])))


def test_the_schema_is_registered():
    assert onnx.defs.has("TakeTokens", DOMAIN)


@pytest.mark.parametrize("make", [body, openvino_body])
@pytest.mark.parametrize(("tokens", "slots"), [(1, 1), (7, 3), (5, 5), (4, 0), (0, 0)])
def test_the_onnx_body_is_the_torch_operator(tokens, slots, make):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, tokens, 4)).astype(np.float32)
    indices = np.stack([rng.permutation(tokens)[:slots].astype(np.int64) for _ in range(3)])
    (taken,) = run_node(make(), {"x": x, "indices": indices})
    np.testing.assert_array_equal(taken, oracle(x, indices))

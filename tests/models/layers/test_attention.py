"""Attention against a softmax written out, and relative biases at original positions."""

import numpy as np
import pytest
import torch
from tests.conftest import tiny_backbone, tiny_coda
from tests.models.inputs import states
from torch import nn

from coda_models.layers.attention import Attention, bias_between, mask_bias


def attention(width=8, heads=2, seed=0):
    torch.manual_seed(seed)
    return Attention(*(nn.Linear(width, width) for _ in range(4)), heads, 0.0).double().eval()


def oracle(module, x, memory, bias):
    """One head of one example at a time. bias: [batch, heads, q, k]"""

    def project(linear, t):
        return t @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()

    x, memory, bias = x.numpy(), memory.numpy(), bias.numpy()
    size = x.shape[-1] // module.heads
    mixed = np.zeros_like(x)
    for b in range(len(x)):
        q, k, v = project(module.query, x[b]), project(module.key, memory[b]), project(module.value, memory[b])
        for h in range(module.heads):
            part = slice(h * size, (h + 1) * size)
            logits = q[:, part] @ k[:, part].T / np.sqrt(size) + bias[b, h]
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            mixed[b][:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    return project(module.out, mixed)


def test_attention_is_the_oracles():
    module, x, memory = attention(), states(2, 5, 8, 1), states(2, 7, 8, 2)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    bias = mask_bias(valid, torch.float64) + states(2, 10, 7, 3).reshape(2, 2, 5, 7)
    with torch.no_grad():
        y = module(x, memory, bias).numpy()
    np.testing.assert_allclose(y, oracle(module, x, memory, bias), rtol=0, atol=1e-12)


def test_masked_keys_have_no_say():
    module, x, memory = attention(), states(1, 5, 8, 1), states(1, 7, 8, 2)
    valid = torch.tensor([[True, False, True, True, False, True, False]])
    with torch.no_grad():
        before = module(x, memory, mask_bias(valid, torch.float64))
        memory[~valid] += 1e3
        assert torch.equal(module(x, memory, mask_bias(valid, torch.float64)), before)
        kept = module(x, memory[:, valid[0]], mask_bias(valid[:, valid[0]], torch.float64))
    torch.testing.assert_close(kept, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_without_valid_keys_stays_finite(dtype):
    module = attention().to(dtype)
    bias = mask_bias(torch.zeros(1, 4, dtype=torch.bool), dtype)
    assert bias.dtype == dtype
    assert bool(module(states(1, 3, 8, dtype=dtype), states(1, 4, 8, dtype=dtype), bias).isfinite().all())


def dense_bias(tokens):
    """Hugging Face's own bias of a tiny MPNet. [1, heads, tokens, tokens]"""
    encoder = tiny_backbone("mpnet", "feature-extraction").encoder
    x = torch.zeros(1, tokens, 32)
    return encoder.compute_position_bias(x)


@pytest.mark.parametrize("tokens", [1, 2, 9, 64])
def test_the_table_holds_the_dense_bias(tokens):
    positions = torch.arange(tokens).unsqueeze(0)
    table = tiny_coda("mpnet").relative_bias.table(tokens)
    assert table.shape == (2 * tokens - 1, 4)
    assert torch.equal(bias_between(table, positions, positions), dense_bias(tokens))


def test_routed_tokens_have_the_bias_of_their_original_positions():
    tokens = 40
    dense = dense_bias(tokens)[0]  # [heads, tokens, tokens]
    table = tiny_coda("mpnet").relative_bias.table(tokens)
    indices = torch.tensor([[0, 3, 17, 39], [5, 6, 38, 39], [39, 0, 20, 1]])
    everywhere = torch.arange(tokens).unsqueeze(0)
    k_to_k = bias_between(table, indices, indices)
    k_to_all = bias_between(table, indices, everywhere)
    for row, chosen in enumerate(indices):
        assert torch.equal(k_to_k[row], dense[:, chosen][:, :, chosen])
        assert torch.equal(k_to_all[row], dense[:, chosen])
    assert not torch.equal(k_to_k[0], dense[:, :4, :4])  # or the test could not tell new positions from old ones

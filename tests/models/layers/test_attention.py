"""Attention against a softmax written out, and relative biases at original positions."""

import numpy as np
import pytest
import torch
from tests.conftest import tiny_backbone, tiny_coda
from tests.models.inputs import states
from torch import nn

from coda_models.layers.attention import Attention, KeysValues, LogitBias, Places, bias_between, mask_bias


def attention(width=8, heads=2, inner=8, biases=(True, True, True, True), scale=None):
    torch.manual_seed(0)
    sizes = [(width, inner)] * 3 + [(inner, width)]
    linears = (nn.Linear(*size, bias=bias) for size, bias in zip(sizes, biases, strict=True))
    return Attention(*linears, heads, 0.0, scale=scale).double().eval()


def places(valid, queries, **more):
    """Queries and keys at the first positions."""
    return Places(torch.arange(queries).unsqueeze(0), torch.arange(valid.shape[1]).unsqueeze(0), valid, **more)


def oracle(module, x, memory, bias):
    """One head of one example at a time. bias: [batch, heads, q, k]"""

    def project(linear, t):
        return t @ linear.weight.detach().numpy().T + (0 if linear.bias is None else linear.bias.detach().numpy())

    x, memory, bias = x.numpy(), memory.numpy(), bias.numpy()
    size = module.query.out_features // module.heads
    scale = 1 / np.sqrt(size) if module.scale is None else module.scale
    mixed = np.zeros((*x.shape[:-1], module.query.out_features))
    for b in range(len(x)):
        q, k, v = project(module.query, x[b]), project(module.key, memory[b]), project(module.value, memory[b])
        for h in range(module.heads):
            part = slice(h * size, (h + 1) * size)
            logits = q[:, part] @ k[:, part].T * scale + bias[b, h]
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            mixed[b][:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    return project(module.out, mixed)


FORMS = {
    "usual": {},
    "a scale of its own": {"scale": 1.0},
    "wider inside": {"inner": 12},
    "narrower inside": {"inner": 4},
    "keys without bias": {"biases": (True, False, True, True)},
    "no biases": {"biases": (False,) * 4, "scale": 0.3, "inner": 6},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_attention_is_the_oracles(form):
    module, x, memory = attention(**FORMS[form]), states(2, 5, 8, 1), states(2, 7, 8, 2)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    table = states(1, 13, 2, 3)[0]
    bias = mask_bias(valid, torch.float64).expand(2, 2, 5, 7) + torch.stack(
        [table[6 - query : 13 - query].T for query in range(5)], 1
    )
    with torch.no_grad():
        y = module(x, memory, places(valid, 5, table=table)).numpy()
    np.testing.assert_allclose(y, oracle(module, x, memory, bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", [4, 12])
def test_a_prefix_is_as_wide_as_attention_inside(inner):
    module, x = attention(inner=inner), states(1, 5, 8)
    module.add_prefix(3)
    module.double()
    key, value = states(2, 3, inner // 2, 5), states(2, 3, inner // 2, 6)  # [heads, tokens, head width]
    module.fill_prefix(key, value)
    assert (module.inner, module.prefix) == (inner, 3)
    learned = (given.transpose(0, 1).flatten(1).unsqueeze(0) for given in (key, value))  # [1, tokens, inner]
    longer = KeysValues(*(torch.cat(both, 1) for both in zip(learned, module.project(x), strict=True)))
    with torch.no_grad():
        y = module(x, x, places(torch.ones(1, 5, dtype=torch.bool), 5))
        module.prefix_key = module.prefix_value = None
        torch.testing.assert_close(y, module(x, longer, places(torch.ones(1, 8, dtype=torch.bool), 5)))


def test_masked_keys_have_no_say():
    module, x, memory = attention(), states(1, 5, 8, 1), states(1, 7, 8, 2)
    valid = torch.tensor([[True, False, True, True, False, True, False]])
    with torch.no_grad():
        before = module(x, memory, places(valid, 5))
        memory[~valid] += 1e3
        assert torch.equal(module(x, memory, places(valid, 5)), before)
        kept = module(x, memory[:, valid[0]], places(valid[:, valid[0]], 5))
    torch.testing.assert_close(kept, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_without_valid_keys_stays_finite(dtype):
    module, none = attention().to(dtype), torch.zeros(1, 4, dtype=torch.bool)
    assert LogitBias()(places(none, 3), dtype).dtype == dtype
    x, memory = states(1, 3, 8, dtype=dtype), states(1, 4, 8, dtype=dtype)
    assert bool(module(x, memory, places(none, 3)).isfinite().all())


def test_a_bias_of_keys_is_added_to_what_masks_them():
    valid, key_bias = torch.tensor([[True, True, False]]), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    bias = LogitBias()(places(valid, 2, key_bias=key_bias), torch.float32)
    assert bias.flatten()[:2].tolist() == [1.0, 2.0]
    assert bias.flatten()[2] < -1e38


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

"""CodaLayer against CODA.md's formulas, an example at a time, and its invariants 1, 2, 3 and 5 at layer level."""

from fractions import Fraction

import pytest
import torch
from tests.conftest import tiny_coda
from tests.models.inputs import ALL_BUT_IN_NAME, states, table_of
from tests.ops.route_oracle import gates_oracle, selection_oracle
from torch.nn.functional import linear, softmax

from coda_models import CodaConfig
from coda_models.layers.feed_forward import GatedFeedForward
from coda_models.layers.layer import PreNormBlock
from coda_ops.capacity import slot_count

ATTENTIONS = ("k_to_k", "k_to_all")
MASK = torch.tensor(
    [
        [True] * 13,
        [True] * 7 + [False] * 6,
        [False, True, True, False, True, False, True, True, True, True, False, True, False],
        [False] * 12 + [True],
    ]
)

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=ATTENTIONS)
def attention(request):
    return request.param


def layer_of(family, attention, reduction=2, dtype=torch.float64, final=0.03):
    """The second layer of a tiny model, and its relative bias for MASK's length."""
    model = tiny_coda(family, CodaConfig(reduction=reduction, attention=attention, epsilon_final=final)).to(dtype)
    return list(model.coda_layers())[1], table_of(model, MASK.shape[1])


def turned(module, x, positions):
    """Rotary positions as multiplication by complex numbers. x: [tokens, width]"""
    if module.rotary is None:
        return x
    heads = x.unflatten(-1, (module.heads, 2, -1))  # [tokens, heads, 2, half]
    by = torch.complex(module.rotary.cos[positions], module.rotary.sin[positions]).unsqueeze(1)
    made = torch.complex(heads[:, :, 0], heads[:, :, 1]) * by
    return torch.stack((made.real, made.imag), 2).flatten(1)


def attend(module, x, memory, bias, at, keys):
    q, k, v = turned(module, module.query(x), at), turned(module, module.key(memory), keys), module.value(memory)
    size = q.shape[-1] // module.heads
    parts = [slice(h * size, (h + 1) * size) for h in range(module.heads)]
    heads = [softmax(q[:, p] @ k[:, p].T / size**0.5 + bias[h], -1) @ v[:, p] for h, p in enumerate(parts)]
    return linear(torch.cat(heads, -1), module.out.weight, module.out.bias)


def feed(module, x):
    if isinstance(module, GatedFeedForward):
        gate, value = module.up(x)[:, :48], module.up(x)[:, 48:]
        return module.down(module.activation(gate) * value)
    return module.down(module.activation(module.up(x)))


def layer_oracle(layer, x, mask, table):
    """One example by CODA.md's formulas. x: [tokens, width]"""
    block, tokens = layer.block, x.shape[0]
    pre_norm = isinstance(block, PreNormBlock)
    read = block.norm1(x) if pre_norm else x
    a = layer.adapter
    y = x + (read @ a.down + a.down_bias).clamp(min=0) @ a.up + a.up_bias
    scores = (read @ layer.router.weight)[:, 0]
    chosen = selection_oracle(scores.tolist(), mask.tolist(), layer.reduction)
    gates = torch.tensor(gates_oracle(scores.numpy(), mask.numpy(), layer.reduction, 0.03))[chosen]
    keys = chosen if layer.attention == "k_to_k" else [i for i in range(tokens) if mask[i]]
    bias = torch.zeros(layer.block.attention.heads, len(chosen), len(keys), dtype=x.dtype)
    if table is not None:
        for i, query in enumerate(chosen):
            for j, key in enumerate(keys):
                bias[:, i, j] = table[key - query + tokens - 1]
    if (window := block.attention.logit_bias.window) is not None:
        assert window < tokens - 1
        far = (torch.tensor(chosen).unsqueeze(1) - torch.tensor(keys)).abs() > window
        bias = bias.masked_fill(far, -torch.inf)
    z = attend(block.attention, read[chosen], read[keys], bias, chosen, keys)
    if pre_norm:
        update = z + feed(block.feed_forward, block.norm2(x[chosen] + z))
    else:
        attended = block.norm1(x[chosen] + z)
        update = block.norm2(attended + feed(block.feed_forward, attended)) - x[chosen]
    y[chosen] += gates.unsqueeze(-1) * update
    return y


@pytest.mark.parametrize("reduction", [2, "7/2", 100])
def test_the_layer_is_the_formulas(family, attention, reduction):
    layer, table = layer_of(family, attention, reduction)
    x = states(*MASK.shape)
    y, routing = layer(x, MASK, table)
    wanted = torch.stack([layer_oracle(layer, x[row], MASK[row], table) for row in range(len(x))])
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-9)
    assert routing.indices.shape[1] == layer.slots(MASK.shape[1]) == slot_count(13, Fraction(reduction))


def test_r_1_equals_the_routed_path_that_selects_all(family, attention):
    """Invariant 1, and with k_to_all invariant 5: all tokens as queries are plain attention."""
    layer, table = layer_of(family, attention)
    x = states(*MASK.shape)
    layer.reduction = Fraction(1)
    dense, none = layer(x, MASK, table)
    layer.reduction = ALL_BUT_IN_NAME
    routed, routing = layer(x, MASK, table)
    assert none is None
    assert (routing.gates[routing.used] == 1).all()
    assert routing.used.sum(1).tolist() == MASK.sum(1).tolist()
    torch.testing.assert_close(routed[MASK], dense[MASK], rtol=0, atol=1e-12)


def test_r_1_equals_a_selection_of_all_tokens(family, attention):
    layer, table = layer_of(family, attention)
    x, mask = states(3, 13), torch.ones(3, 13, dtype=torch.bool)
    layer.reduction = Fraction(1)
    dense, _ = layer(x, mask, table)
    layer.reduction = ALL_BUT_IN_NAME
    routed, _ = layer(x, mask, table, (torch.arange(13).repeat(3, 1), torch.ones(3, 13), mask))
    torch.testing.assert_close(routed, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_unrouted_token_is_x_plus_adapter_bit_for_bit(family, attention, dtype):
    """Invariant 2: whatever the routed tokens hold, and whatever the heavy block weighs."""
    layer, table = layer_of(family, attention, "7/2", dtype)
    x = states(*MASK.shape, dtype=dtype)
    before, routing = layer(x, MASK, table)
    routed = torch.zeros_like(MASK).scatter(1, routing.indices, routing.used)
    base = x + layer.adapter(layer.block.read(x))
    assert routed.sum() == 4 + 2 + 3 + 1
    assert torch.equal(before[~routed], base[~routed])
    assert (before[routed] != base[routed]).any(-1).all()

    other = torch.where(routed.unsqueeze(-1), states(*MASK.shape, seed=9, dtype=dtype) * 50, x)
    after, _ = layer(other, MASK, table, routing[1:])
    assert torch.equal(after[~routed], before[~routed])
    for parameter in layer.block.feed_forward.parameters():
        parameter.fill_(float("nan"))
    poisoned, _ = layer(x, MASK, table, routing[1:])
    assert torch.equal(poisoned[~routed], before[~routed])
    assert poisoned[routed].isnan().any()


def test_k_to_k_reads_routed_tokens_alone_and_k_to_all_reads_all(family, attention):
    """What the unrouted tokens hold moves the gates a little, but in k_to_k never the update that gates weigh."""
    layer, table = layer_of(family, attention, "7/2", final=1.0)
    x, mask = states(2, 13), torch.ones(2, 13, dtype=torch.bool)

    def update(x, decision):
        y, routing = layer(x, mask, table, decision)
        at = routing.indices.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        base = x + layer.adapter(layer.block.read(x))
        return ((y - base).gather(1, at) / routing.gates.unsqueeze(-1)), routing

    first, routing = update(x, None)
    assert (routing.gates > 1e-3).all()
    chosen = torch.zeros_like(mask).scatter(1, routing.indices, True)
    changed = torch.where(chosen.unsqueeze(-1), x, x + 0.05 * states(2, 13, seed=5))
    second, _ = update(changed, routing[1:])
    same = torch.allclose(first, second, rtol=0, atol=1e-9)
    assert same == (attention == "k_to_k")


def test_padding_on_either_side_changes_no_valid_output(family, attention):
    """Invariant 3 for a layer."""
    layer, _ = layer_of(family, attention, "7/2")
    model = tiny_coda(family, CodaConfig(attention=attention)).double()
    x = states(*MASK.shape)
    y, routing = layer(x, MASK, table_of(model, 13))
    noise = states(len(x), 5, seed=3) * 100
    off = torch.zeros(len(x), 5, dtype=torch.bool)
    for left in (False, True):
        wide = torch.cat([noise, x] if left else [x, noise], 1)
        mask = torch.cat([off, MASK] if left else [MASK, off], 1)
        padded, again = layer(wide, mask, table_of(model, 18))
        inner = padded[:, 5:] if left else padded[:, :13]
        close = 1e-5 if family == "modernbert" else 1e-10  # its tables are float32, as transformers computes them
        torch.testing.assert_close(inner[MASK], y[MASK], rtol=0, atol=close)
        shift = 5 if left else 0
        assert (again.indices[again.used] - shift).tolist() == routing.indices[routing.used].tolist()


def test_examples_do_not_see_each_other(family, attention):
    layer, table = layer_of(family, attention, "7/2")
    x = states(*MASK.shape)
    together, _ = layer(x, MASK, table)
    for row in range(len(x)):
        alone, _ = layer(x[row : row + 1], MASK[row : row + 1], table)
        torch.testing.assert_close(alone[0][MASK[row]], together[row][MASK[row]], rtol=0, atol=1e-10)


def test_a_replayed_decision_is_taken(family, attention):
    """As it is: positions, how much each weighs, and slots that are not in use."""
    layer, table = layer_of(family, attention)
    x, mask = states(1, 13), torch.ones(1, 13, dtype=torch.bool)
    indices = torch.tensor([[1, 2, 5, 7, 9, 11, 12]])
    used = torch.tensor([[True] * 5 + [False] * 2])
    base = x + layer.adapter(layer.block.read(x))
    full, routing = layer(x, mask, table, (indices, used.float(), used))
    half, _ = layer(x, mask, table, (indices, used * 0.5, used))
    assert (full != base).any(-1)[0].nonzero()[:, 0].tolist() == [1, 2, 5, 7, 9]
    torch.testing.assert_close(2 * (half - base), full - base, rtol=0, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(routing[1:], (indices, used.to(x.dtype), used), strict=True))


def test_a_layer_without_a_valid_token_is_its_adapter_and_finite(family, attention):
    layer, table = layer_of(family, attention)
    x, mask = states(1, 13), torch.zeros(1, 13, dtype=torch.bool)
    y, routing = layer(x, mask, table)
    assert not routing.used.any()
    assert torch.equal(y, x + layer.adapter(layer.block.read(x)))

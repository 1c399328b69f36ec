"""What each token goes through by itself."""

import torch
from tests.models.inputs import states
from torch import nn

from coda_models.layers.feed_forward import GatedFeedForward, PlainFeedForward


def test_the_gated_form():
    torch.manual_seed(0)
    up, down = nn.Linear(8, 24).double(), nn.Linear(12, 8).double()
    module, x = GatedFeedForward(up, torch.tanh, down), states(2, 5, 8)
    with torch.no_grad():
        both = x @ up.weight.T + up.bias
        wanted = (torch.tanh(both[..., :12]) * both[..., 12:]) @ down.weight.T + down.bias
        torch.testing.assert_close(module(x), wanted)
    assert 2 * 8 * module.inner == up.weight.numel() + down.weight.numel()


def test_the_plain_form():
    torch.manual_seed(0)
    up, down = nn.Linear(8, 12).double(), nn.Linear(12, 8, bias=False).double()
    module, x = PlainFeedForward(up, torch.tanh, down), states(2, 5, 8)
    with torch.no_grad():
        wanted = torch.tanh(x @ up.weight.T + up.bias) @ down.weight.T
        torch.testing.assert_close(module(x), wanted)
    assert module.inner == 12
    assert list(module.children()) == [up, down]

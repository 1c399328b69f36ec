"""An invertible adapter computes what the adapters library's own does."""

import pytest
import torch
from adapters.methods.modeling import NICECouplingBlock

from coda_models.layers.invertible import Invertible
from coda_models.learned_parts import InvertibleForm


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_against_the_library(width: int, activation: str):
    torch.manual_seed(0)
    theirs = NICECouplingBlock([[width]], non_linearity=activation, reduction_factor=2)
    form = InvertibleForm(first=theirs.F[0].out_features, second=theirs.G[0].out_features, activation=activation)
    own, x = Invertible(width, form), torch.randn(2, 5, width)
    assert torch.equal(own(x), x)
    for network, other in ((own.first, theirs.F), (own.second, theirs.G)):
        network.load_state_dict(other.state_dict())
    torch.testing.assert_close(own(x), theirs(x))

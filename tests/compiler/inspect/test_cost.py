"""Multiply-adds against the table of CODA.md, and against counting them in a real forward pass."""

import pytest
import torch
from tests.conftest import tiny_coda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from coda_compile.bundling.writer import layer_infos
from coda_compile.inspect.cost import layer_multiply_adds
from coda_models import CodaConfig
from coda_targets.manifest import LayerInfo


@pytest.mark.parametrize(("reduction", "bound"), [("4", 4.2), ("8", 7.9)])
def test_bound_of_the_specification(reduction: str, bound: float):
    dense = layer_multiply_adds(LayerInfo("1", "k_to_k", 64, 512), 512, 768, 3072)
    routed = layer_multiply_adds(LayerInfo(reduction, "k_to_k", 64, 128), 512, 768, 3072)
    assert dense / routed == pytest.approx(bound, abs=0.1)


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
@pytest.mark.parametrize("reduction", ["1", "2", "7/2", "8"])
def test_equals_what_torch_counts(attention: str, reduction: str):
    model = tiny_coda("bert", CodaConfig(reduction=reduction, attention=attention, bottleneck=8))
    layer = next(model.coda_layers())
    tokens, width = 48, 32
    info = LayerInfo(reduction, attention, 8, layer.slots(tokens))
    x, mask = torch.randn(1, tokens, width), torch.ones(1, tokens, dtype=torch.bool)
    # The fused attention kernel of the CPU is unknown to the counter.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(x, mask)
        if layer.adapter is not None:  # custom operators are opaque to the counter
            down, up = layer.adapter.down, layer.adapter.up
            torch.relu(x @ down) @ up
    assert layer_multiply_adds(info, tokens, width, 48) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("attention", "thin"), [("k_to_k", 0), ("k_to_all", 0), ("k_to_all", 6)], ids=["k to k", "k to all", "thin"]
)
@pytest.mark.parametrize("reduction", ["1", "2", "7/2", "8"])
@pytest.mark.parametrize("bottleneck", [0, 8])
def test_stand_ins_and_thin_keys_are_counted(attention: str, thin: int, reduction: str, bottleneck: int):
    """An adapter is for routed tokens alone then."""
    config = CodaConfig(
        reduction=reduction, attention=attention, bottleneck=bottleneck, stand_in=4, key_value_rank=thin
    )
    model = tiny_coda("bert", config)
    layer, (info, _) = next(model.coda_layers()), layer_infos(model, tokens := 48)
    x, mask = torch.randn(1, tokens, 32), torch.ones(1, tokens, dtype=torch.bool)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(x, mask)
        if layer.adapter is not None:  # custom operators are opaque to the counter
            torch.relu(x[:, : layer.slots(tokens)] @ layer.adapter.down) @ layer.adapter.up
    assert layer_multiply_adds(info, tokens, 32, 48) == counter.get_total_flops() // 2

"""What a model in memory multiplies is what its layers do, each by its own r or all by another."""

from fractions import Fraction

import pytest
import torch
from tests.conftest import TINY, example_inputs, tiny_coda
from tests.models.parts import KINDS, with_parts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from coda_compile.bundling.writer import layer_infos
from coda_compile.inspect.cost import layer_multiply_adds as layer_multiply_adds_of
from coda_models import CodaConfig
from coda_models.cost import layer_multiply_adds
from coda_models.learned_parts import NO_PARTS
from coda_ops.cost import multiply_adds


def test_each_layer_by_its_own_reduction_or_by_another():
    model = tiny_coda("bert", CodaConfig(reduction=[2, 4], routed_layers=[0], stand_in=4, bottleneck=8))
    sizes = {"width": TINY["bert"]["hidden_size"], "feed_forward": TINY["bert"]["intermediate_size"]}

    def expected(reduction: int) -> int:
        r = Fraction(reduction)
        return multiply_adds(12, r, attention="k_to_k", bottleneck=8, stand_in=4, key_value_rank=0, **sizes)

    assert layer_multiply_adds(model, 12) == [expected(2), expected(1)]
    assert layer_multiply_adds(model, 12, 3) == [expected(3), expected(1)]
    assert layer_multiply_adds(model, 12, 1) == [expected(1), expected(1)]


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("kind", ["bottlenecks", "parallel and a prefix", "prefixes in front of positions", "prompt"])
def test_learned_parts_are_counted(kind: str, reduction: int):
    """As torch counts all layers; the head and what it reads are no layer."""
    config = {"reduction": reduction, "stand_in": 4, "attention": "k_to_all"}
    model, plain = with_parts(KINDS[kind], **config), with_parts(NO_PARTS, **config)
    model.head = torch.nn.Identity()
    opaque = 2 * 2 * 32 * 4 * 48 // reduction * 2 if kind == "bottlenecks" else 0  # of ReLU, operators of our own
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**example_inputs(model, 1, 48))
    assert sum(layer_multiply_adds(model, 48)) == counter.get_total_flops() // 2 + opaque
    assert sum(layer_multiply_adds(model, 48)) > sum(layer_multiply_adds(plain, 48))
    assert [layer_multiply_adds_of(info, 48, 32, 48) for info in layer_infos(model, 48)] == layer_multiply_adds(
        model, 48
    )

"""What a model in memory multiplies is what its layers do, each by its own r or all by another."""

from fractions import Fraction

from tests.conftest import TINY, tiny_coda

from coda_models import CodaConfig
from coda_models.cost import layer_multiply_adds
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

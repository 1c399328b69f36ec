"""Which layers can skip tokens: what is measured, and that the choice made from it is the best there is."""

from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_models import CodaConfig
from coda_models.errors import ConfigError
from coda_models.training.sensitivity import allocate, choose_reductions, sensitivity
from coda_models.training.train import TailCollator
from coda_ops.cost import multiply_adds

CHOICES = [Fraction(r) for r in (1, 2, 8)]
RANDOM = torch.Generator().manual_seed(0)
ROWS: list[dict[str, Any]] = [
    {"input_ids": [2, *torch.randint(4, 90, (n,), generator=RANDOM).tolist(), 3], "labels": n % 3} for n in range(4, 24)
]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=5),
    st.lists(st.integers(20, 100), min_size=5, max_size=5),
    st.floats(0.1, 1),
)
def test_the_choice_is_the_best_that_fits(losses: list[tuple[float, float]], dense: list[int], share: float):
    by_layer = [dict(zip(CHOICES, (0.0, *sorted(pair)), strict=True)) for pair in losses]
    costs = [{r: int(n * 1000 / r) for r in CHOICES} for n in dense[: len(losses)]]

    def total(of: list[dict[Fraction, Any]], chosen: Any) -> float:
        return sum(layer[r] for layer, r in zip(of, chosen, strict=True))

    budget = share * sum(cost[Fraction(1)] for cost in costs)
    fitting = [chosen for chosen in product(CHOICES, repeat=len(losses)) if total(costs, chosen) <= budget]
    if not fitting:
        with pytest.raises(ConfigError, match="allow more, or larger r"):
            allocate(by_layer, costs, share)
        return
    chosen = allocate(by_layer, costs, share)
    assert total(costs, chosen) <= budget * (1 + 1e-5)
    assert total(by_layer, chosen) <= min(total(by_layer, other) for other in fitting) + 1e-5


def test_a_layer_alone_is_measured_against_the_dense_model(tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=1, routed_layers=[1]))
    collator = TailCollator(tokenizer, 16, drop=0.1, splice=0.5)
    first, second = sensitivity(model, ROWS, collator, CHOICES)
    assert first == dict.fromkeys(CHOICES, 0.0)  # it has no router
    assert list(second) == CHOICES
    assert second[Fraction(1)] == 0
    assert second[Fraction(2)] > 0
    assert second[Fraction(8)] > 0
    assert model.coda_config.reduction == 1
    assert (collator.drop, collator.splice) == (0.1, 0.5)


def test_r_is_chosen_within_the_share(tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=1, bottleneck=4))
    sizes = {"attention": "k_to_k", "width": 32, "feed_forward": 48, "bottleneck": 4}
    for share in (0.4, 0.75, 1.0):
        chosen = choose_reductions(model, ROWS, TailCollator(tokenizer, 16), share, choices=(2, "8"))
        cost = sum(multiply_adds(16, r, **sizes) for r in chosen) / (2 * multiply_adds(16, Fraction(1), **sizes))
        assert cost <= share
        assert (chosen == [1, 1]) == (share == 1.0)
    with pytest.raises(ConfigError, match=r"no r of 1, 2, 8 brings the layers down to 0.10 of their multiply-adds"):
        choose_reductions(model, ROWS, TailCollator(tokenizer, 16), 0.1, choices=(2, 8))

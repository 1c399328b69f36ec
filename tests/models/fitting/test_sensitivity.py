"""Which layers can skip tokens: what is measured, and that the choice made from it is the best there is."""

from copy import deepcopy
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.fitting.texts import batched, dense_model, texts
from torch import Tensor

from coda_models import CodaModel, fit_stand_ins
from coda_models.conversion import add_stand_ins
from coda_models.cost import layer_multiply_adds
from coda_models.digest import tensor_digest
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.fitting.route import fitted_routers, set_routers
from coda_models.fitting.sensitivity import Sensitivity, allocate, sensitivity
from coda_models.ood import FromLogits, OodDetector

CHOICES = [Fraction(r) for r in (1, 2, 8)]
TASKS = ("sequence-classification", "token-classification", "feature-extraction")
BATCHES = batched(texts(40), 8)
SMALL: dict[str, Any] = {"stand_in": 6, "key_value_rank": 5, "reductions": (2, "8")}


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
        with pytest.raises(ConfigError, match="is the least: allow more, or smaller ranks"):
            allocate(by_layer, costs, share)
        return
    chosen = allocate(by_layer, costs, share)
    assert total(costs, chosen) <= budget * (1 + 1e-5)
    assert total(by_layer, chosen) <= min(total(by_layer, other) for other in fitting) + 1e-5


def far(model: CodaModel, wanted: np.ndarray, given: np.ndarray) -> tuple[float, float]:
    """How far answers are from the dense ones, and what of the agreement is lost: one row at a time."""
    if model.head is None:
        apart = [1 - x @ y / np.sqrt(x @ x * (y @ y)) for x, y in zip(wanted, given, strict=True)]
        return float(np.mean(apart)), float(np.mean(apart))
    if model.hf_config.problem_type == "regression":
        apart = [np.mean((x - y) ** 2 / wanted.var(0)) for x, y in zip(wanted, given, strict=True)]
        return float(np.mean(apart)), float(np.mean(apart))
    if model.hf_config.problem_type == "multi_label_classification":
        p, q = (1 / (1 + np.exp(-x)) for x in (wanted, given))
        nats = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1)
        return float(nats.mean()), float(
            np.mean([set(np.flatnonzero(x > 0.5)) != set(np.flatnonzero(y > 0.5)) for x, y in zip(p, q, strict=True)])
        )
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (wanted, given))
    return float((p * np.log(p / q)).sum(1).mean()), float(np.mean(p.argmax(1) != q.argmax(1)))


@torch.no_grad()
def answers(model: CodaModel, batches: Any = BATCHES) -> np.ndarray:
    found: list[Tensor] = []
    for inputs in batches:
        output = model(**inputs)
        rows = output.sentence_embedding if output.logits is None else output.logits
        found.append(rows[inputs["attention_mask"].bool()] if rows.dim() == 3 else rows)
    return torch.cat(found).numpy()


def check(model: CodaModel, found: Sensitivity, attention: str, batches: Any = BATCHES) -> None:
    """Against models that have one layer at r, fitted as such, and answer whole texts."""
    wanted, routers = answers(model, batches), fitted_routers(model, BATCHES)
    for i in range(2):
        assert list(found.divergences[i]) == list(found.disagreements[i]) == list(found.costs[i]) == CHOICES
        for r in CHOICES:
            alone = deepcopy(model)
            thin = 5 if attention == "k_to_all" else 0
            both = [r if j == i else 1 for j in range(2)]
            add_stand_ins(alone, reduction=both, stand_in=6, attention=attention, key_value_rank=thin)
            set_routers(alone, routers)
            fit_stand_ins(alone, BATCHES)
            apart, lost = far(model, wanted, answers(alone, batches))
            assert found.divergences[i][r] == pytest.approx(apart, rel=1e-5, abs=1e-12)
            assert found.disagreements[i][r] == pytest.approx(lost, rel=1e-5, abs=1e-12)
            lengths = [int(n) for inputs in BATCHES for n in inputs["attention_mask"].sum(1)]
            assert found.costs[i][r] == sum(layer_multiply_adds(alone, n)[i] for n in lengths)
        assert found.divergences[i][Fraction(1)] == pytest.approx(0, abs=1e-15)
        assert found.divergences[i][Fraction(8)] > 0


@pytest.mark.parametrize("attention", ["k_to_k", "k_to_all"])
def test_a_layer_alone_is_measured_with_all_in_place(family: str, attention: str):
    model = dense_model(family)
    state = tensor_digest(model.state_dict())
    check(model, sensitivity(model, BATCHES, attention=attention, **SMALL), attention)
    assert tensor_digest(model.state_dict()) == state
    assert model.coda_config.stand_in == 0


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (TASKS[0], "multi_label_classification"),
        (TASKS[0], "regression"),
        (TASKS[1], None),
        (TASKS[2], None),
    ],
)
def test_by_answers_of_every_kind(task: str, problem: str | None):
    model = dense_model(task=task)
    model.hf_config.problem_type = problem
    check(model, sensitivity(model, BATCHES, **SMALL), "k_to_all")


def test_answers_of_some_texts_are_compared():
    model = dense_model()
    found = sensitivity(model, BATCHES, texts=16, **SMALL)  # two batches of the five
    check(model, found, "k_to_all", [BATCHES[1], BATCHES[3]])


def test_routers_are_taken_and_progress_is_told():
    model, told = dense_model(), []
    routers = fitted_routers(model, BATCHES)
    given = sensitivity(model, BATCHES, routers=routers, progress=lambda *one: told.append(one), **SMALL)
    assert given == sensitivity(model, BATCHES, **SMALL)
    assert told == [("layers", done, 2) for done in range(3)]


def test_r_is_chosen_within_the_share():
    found = sensitivity(dense_model(), BATCHES, **SMALL)
    least = sum(min(layer.values()) for layer in found.costs) / sum(layer[Fraction(1)] for layer in found.costs)
    for share in (least + 1e-6, 0.9, 1.0):
        chosen = found.choose(share)
        assert chosen.share <= share
        assert (chosen.reductions == (1, 1)) == (share == 1.0)
        lost = sum(layer[r] for layer, r in zip(found.disagreements, chosen.reductions, strict=True))
        assert chosen.agreement == pytest.approx(1 - lost)
    with pytest.raises(
        ConfigError, match=r"no r of 1, 2, 8 brings the layers down to 0.10 of their multiply-adds, 0.\d"
    ):
        found.choose(0.1)


def test_small_losses_are_told_apart():
    """A model that is sure of its answers has divergences far below what a solver takes for nothing."""
    losses = [{r: 1e-9 * (i + 1) * (float(r) - 1) for r in CHOICES} for i in range(3)]
    costs = [{r: 840 / float(r) for r in CHOICES}] * 3
    assert allocate(losses, costs, 2.2 / 3) == [2, 2, 1]


def test_what_cannot_be_routed_is_said():
    model = dense_model()
    with pytest.raises(ConfigError, match="no texts to fit on"):
        sensitivity(model, [])
    with pytest.raises(ConfigError, match="reduction 1/2 is below 1"):
        sensitivity(model, BATCHES, reductions=["1/2"])
    with pytest.raises(ConfigError, match="stand-ins of rank 900 need 901 or more"):
        sensitivity(model, BATCHES, stand_in=900)
    model.ood = OodDetector("msp", FromLogits("msp"), 0.5, 0.95)
    with pytest.raises(UnsupportedModelError, match="knows its dense states"):
        sensitivity(model, BATCHES)

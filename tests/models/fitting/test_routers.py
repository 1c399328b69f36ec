"""Fitted routers: saliency against finite differences, the fit against brute force over texts one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from tests.models.fitting.texts import Batch, alone, batched, dense_model, texts
from torch import Tensor

from coda_models import CodaModel, fit_routers
from coda_models.errors import ConfigError
from coda_models.fitting.answers import loss_of_own_answers
from coda_models.fitting.routers import ranks, saliency
from coda_targets.errors import InputError

ROWS = texts(9)
TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {},
    "token-classification": {},
    "feature-extraction": {},
    "several labels": {"problem_type": "multi_label_classification"},
    "regression": {"problem_type": "regression"},
}


def model_of(task: str, family: str = "bert") -> CodaModel:
    model = dense_model(family, task if "-" in task else "sequence-classification")
    for name, value in TASKS[task].items():
        setattr(model.hf_config, name, value)
    return model


@torch.no_grad()
def loss(model: CodaModel, inputs: Batch, layer: int, add: Tensor | None, key_bias: Tensor | None) -> float:
    """With something added to one layer's output, or to its logits by key."""
    x, mask, table = model.embed(inputs)
    for i, one in enumerate(model.coda_layers()):
        x = one.dense(x, mask, table, key_bias if i == layer else None)
        x = x if add is None or i != layer else x + add
    return float(loss_of_own_answers(model, model.answer(x, mask), mask))


@pytest.mark.parametrize("task", TASKS)
def test_saliency_is_what_finite_differences_say(task: str, family: str):
    """Of a token that skips a part of its update, and of one that is attended to a little less."""
    model = model_of(task, family)
    (inputs,) = batched(ROWS[:3], 3)
    mask, found = saliency(model, inputs)
    states = model(**inputs, output_hidden_states=True).hidden_states
    step = 1e-4
    for i, one in enumerate(found):
        for row, token in ((0, 0), (1, 0), (2, int(mask[2].sum()) - 1)):
            along = torch.zeros_like(states[i])
            along[row, token] = (states[i + 1] - states[i])[row, token]
            key = torch.zeros(len(mask), 1, 1, mask.shape[1], dtype=along.dtype)
            key[row, 0, 0, token] = 1
            cost, worth = (
                [
                    loss(model, inputs, i, *(sign * step * x if x is not None else None for x in pair))
                    for sign in (1, -1)
                ]
                for pair in ((along, None), (None, key))
            )
            assert float(one.cost[row, token]) == pytest.approx(abs(cost[0] - cost[1]) / 2 / step, rel=1e-4, abs=1e-6)
            assert float(one.key[row, token]) == pytest.approx(abs(worth[0] - worth[1]) / 2 / step, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=5, max_size=5), min_size=1, max_size=3))
def test_ranks_are_those_of_scipy_ties_and_padding_included(rows: list[list[tuple[int, bool]]]):
    values, mask = (
        torch.tensor([[float(v) for v, _ in row] for row in rows]),
        torch.tensor([[m for _, m in r] for r in rows]),
    )
    found = ranks(values, mask)
    assert (found[~mask] == 0).all()
    for own, value, valid in zip(found, values, mask, strict=True):
        count = int(valid.sum())
        wanted = (rankdata(value[valid]) - 1) / (count - 1) - 0.5 if count > 1 else np.zeros(count)
        np.testing.assert_allclose(own[valid], wanted, rtol=0, atol=1e-12)


def oracle(model: CodaModel, rows: list[Tensor], by: str, ridge: float, deviation: float) -> list[np.ndarray]:
    """Every text by itself, all tokens kept, least squares with the ridge as rows below."""
    xs: list[list[np.ndarray]] = [[] for _ in model.layers]
    ys: list[list[np.ndarray]] = [[] for _ in model.layers]
    for inputs in alone(rows):
        for i, one in enumerate(saliency(model, inputs)[1]):
            x = one.read[0].numpy()
            xs[i].append(x - x.mean(0))
            parts = [one.cost, one.key] if by == "both" else [one.cost if by == "cost" else one.key]
            rank = [rankdata(part[0].numpy()) for part in parts]
            ys[i].append(rankdata(sum(rank)) - (len(x) + 1) / 2 if len(x) > 1 else np.zeros(1))
            ys[i][-1] /= max(len(x) - 1, 1)
    found = []
    for x, y in zip(map(np.vstack, xs), map(np.concatenate, ys), strict=True):
        below = np.eye(x.shape[1]) * np.sqrt(ridge * np.square(x).sum(0).mean())
        w = np.linalg.lstsq(np.vstack([x, below]), np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]
        found.append(w * deviation / np.sqrt(np.square(x @ w).mean()))
    return found


@pytest.mark.parametrize("by", ["both", "cost", "key"])
@pytest.mark.parametrize(("size", "padding", "left"), [(1, 0, False), (4, 3, False), (9, 0, True)])
def test_the_fit_is_brute_force_however_texts_are_batched(by: str, size: int, padding: int, left: bool):
    model = dense_model("bert")
    rows = [
        row for row in ROWS if len(row) != 2
    ]  # two keys are worth the same but for rounding: one's loss is the other's
    if left:
        rows = [row[:3] for row in rows if len(row) > 2]  # positions count from the left, padding among them
    fit_routers(model, batched(rows, size, padding, left=left), by=by, ridge=0.1, deviation=0.4)
    for layer, wanted in zip(model.coda_layers(), oracle(model, rows, by, 0.1, 0.4), strict=True):
        assert layer.router is not None
        np.testing.assert_allclose(layer.router.weight.detach()[:, 0], wanted, rtol=0, atol=1e-8)


def test_scores_within_a_text_deviate_as_asked(family: str):
    """In a pre-norm model too: of what its router reads."""
    model = dense_model(family)
    fit_routers(model, batched(ROWS, 4), deviation=0.7)
    apart: list[list[Tensor]] = [[] for _ in model.layers]
    with torch.no_grad():
        for inputs in alone(ROWS):
            x, mask, table = model.embed(inputs)
            for i, layer in enumerate(model.coda_layers()):
                assert layer.router is not None
                scores = layer.router(layer.block.read(x))[0]
                apart[i].append(scores - scores.mean())
                x = layer.dense(x, mask, table)
    for scores in apart:
        assert float(torch.cat(scores).square().mean().sqrt()) == pytest.approx(0.7, rel=1e-6)


def test_the_model_as_it_runs_now_does_not_matter():
    """Its r, its mode, what its parameters ask for: saliency is of the dense model, and all else is left alone."""
    model, routed = dense_model(), dense_model()
    routed.set_reduction(3)
    routed.train()
    for one in (model, routed):
        fit_routers(one, batched(ROWS, 4))
    assert routed.training
    assert all(parameter.grad is None for parameter in routed.parameters())
    for own, other in zip(model.parameters(), routed.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("rows", [[torch.tensor([7])] * 3, [torch.tensor([9] * 6)] * 2])
def test_texts_that_have_nothing_to_choose_from_give_finite_routers(rows: list[Tensor]):
    """Of one token each; all alike."""
    model = dense_model()
    fit_routers(model, batched(rows, 2))
    for layer in model.coda_layers():
        assert layer.router is not None
        assert torch.isfinite(layer.router.weight).all()


def test_an_answer_beyond_doubt_still_tells_tokens_apart():
    model = dense_model()
    assert isinstance(model.head, torch.nn.Module)
    with torch.no_grad():
        model.head[-1].weight.mul_(8)  # type: ignore[index,operator,union-attr]
    single = dense_model()
    single.load_state_dict(model.state_dict())
    single.float()
    fit_routers(model, batched(ROWS, 4))
    fit_routers(single, batched(ROWS, 4))
    for one, other in zip(model.coda_layers(), single.coda_layers(), strict=True):
        assert one.router is not None
        assert other.router is not None
        cosine = torch.cosine_similarity(one.router.weight, other.router.weight.double(), 0)
        assert float(cosine.detach()) > 0.9


def test_what_cannot_be_fitted_is_said():
    model = dense_model()
    with pytest.raises(ConfigError, match="routers by 'norm' are unknown: use one of both, cost, key"):
        fit_routers(model, batched(ROWS, 4), by="norm")
    with pytest.raises(ConfigError, match="no texts to fit on"):
        fit_routers(model, [])
    with pytest.raises(ConfigError, match="an iterator gives them once"):
        fit_routers(model, iter(batched(ROWS, 4)))
    with pytest.raises(InputError, match="labels"):
        fit_routers(model, [{**batch, "labels": torch.zeros(1)} for batch in batched(ROWS, 4)])
    empty = [{name: torch.zeros_like(tensor) for name, tensor in batch.items()} for batch in batched(ROWS, 4)]
    with pytest.raises(ConfigError, match="have no tokens"):
        fit_routers(model, empty)
    with pytest.raises(ConfigError, match="no routers to fit"):
        fit_routers(dense_model(bottleneck=0), batched(ROWS, 4))
    with torch.no_grad():
        list(model.coda_layers())[1].block.feed_forward.down.weight[3, 4] = float("nan")
    with pytest.raises(ConfigError, match="^layer 1 gives NaN or infinite values"):
        fit_routers(model, batched(ROWS, 4))

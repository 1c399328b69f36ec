"""Fitted stand-ins: against brute force on all tokens at once, exact where what is missed is linear."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.fitting.texts import Batch, alone, batched, dense_model, texts, with_stand_ins
from tests.models.inputs import ALL_BUT_IN_NAME

from coda_models import CodaModel, fit_stand_ins
from coda_models.errors import ConfigError
from coda_models.layers.layer import CodaLayer
from coda_models.layers.low_rank import LowRank

ROWS = texts(24)
ATTENTIONS = ("k_to_k", "k_to_all")


@pytest.fixture(params=ATTENTIONS)
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def maps(model: CodaModel) -> dict[str, torch.Tensor]:
    """What every stand-in does to a token: a product of its parts has no sign to be chosen."""
    found = {}
    for i, layer in enumerate(model.coda_layers()):
        if (one := layer.stand_in) is not None:
            found[f"layer {i}"] = torch.cat([one.down @ one.up, one.bias.unsqueeze(0)]).detach()
    return found


def check_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 1e-8) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def weighted_ridge(x: Any, y: Any, weight: Any, ridge: float, rank: int) -> np.ndarray:
    """[inputs + 1, outputs], the bias last."""
    root = np.sqrt(weight)[:, None]
    means = [weight @ one / weight.sum() for one in (x, y)]
    a, b = (x - means[0]) * root, (y - means[1]) * root
    rows = np.vstack([a, np.eye(a.shape[1]) * np.sqrt(ridge * np.square(a).sum() / weight.sum())])
    w = np.linalg.lstsq(rows, np.vstack([b, np.zeros((a.shape[1], b.shape[1]))]), rcond=None)[0]
    right = np.linalg.svd(rows @ w, full_matrices=False)[2][:rank]
    w = w @ right.T @ right
    return np.vstack([w, means[1] - means[0] @ w])


@torch.no_grad()
def oracle(model: CodaModel, rows: list[torch.Tensor], corrected: bool, ridge: float) -> None:
    """In place, with every state of every text in memory, one text at a time."""
    start = [model.embed(inputs) for inputs in alone(rows)]
    dense = routed = [x for x, _, _ in start]
    for layer in model.coda_layers():
        assert layer.stand_in is not None
        before = dense
        after = [layer.dense(x, mask, table) for x, (_, mask, table) in zip(dense, start, strict=True)]
        reads, missed, weights, strayed = [], [], [], []
        for x, own, wanted, (_, mask, table) in zip(routed, before, after, start, strict=True):
            routing = layer(x, mask, table)[1]
            gate = torch.zeros(x.shape[1], dtype=x.dtype)
            gate[routing.indices[0]] = routing.gates[0]
            reads.append(layer.block.read(x)[0].numpy())
            missed.append(((wanted if corrected else layer.dense(x, mask, table)) - x)[0].numpy())
            strayed.append((layer.block.read(own if corrected else x) - layer.block.read(x))[0].numpy())
            weights.append((1 - gate).numpy())
        x, left = np.vstack(reads), np.concatenate(weights)
        fill(layer.stand_in, weighted_ridge(x, np.vstack(missed), left, ridge, 8))
        if layer.key_value is not None:
            moved = weighted_ridge(x, np.vstack(strayed), left, ridge, 32)
            towards = torch.from_numpy(x + x @ moved[:-1] + moved[-1])
            projected = torch.cat(layer.block.attention.project(towards), -1).numpy()
            fill(layer.key_value, weighted_ridge(x, projected, left, 0.0, 6))
        routed = [layer(x, mask, table)[0] for x, (_, mask, table) in zip(routed, start, strict=True)]
        dense = after


def fill(thin: LowRank, wanted: np.ndarray) -> None:
    left, singular, right = np.linalg.svd(wanted[:-1], full_matrices=False)
    rank = thin.down.shape[1]
    thin.down.copy_(torch.from_numpy(left[:, :rank] * singular[:rank]))
    thin.up.copy_(torch.from_numpy(right[:rank]))
    thin.bias.copy_(torch.from_numpy(wanted[-1]))


@pytest.mark.parametrize(("corrected", "thin"), [(True, 0), (False, 0), (True, 6)])
def test_the_fit_is_brute_force(family: str, attention: str, corrected: bool, thin: int):
    if thin and attention == "k_to_k":
        pytest.skip("k_to_k has no keys of other tokens")
    model, wanted = (with_stand_ins(dense_model(family), attention, thin=thin) for _ in range(2))
    fit_stand_ins(model, batched(ROWS, 7), corrected=corrected, ridge=1e-2)
    oracle(wanted, ROWS, corrected, 1e-2)
    check_same(maps(model), maps(wanted), 1e-7)
    with torch.no_grad():  # of keys and values what they do: along what no token varies in, any map is as good
        for inputs in batched(ROWS, 7):
            torch.testing.assert_close(model(**inputs).logits, wanted(**inputs).logits, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (5, 9), (24, 2)])
def test_batches_and_padding_change_nothing(attention: str, size: int, padding: int):
    thin = 6 if attention == "k_to_all" else 0
    models = [with_stand_ins(dense_model(), attention, thin=thin) for _ in range(2)]
    fit_stand_ins(models[0], batched(ROWS, 7))
    fit_stand_ins(models[1], batched(ROWS, size, padding))
    check_same(maps(models[0]), maps(models[1]))


def linear(layer: CodaLayer) -> None:
    """Make a pre-norm layer x + an affine map of what it reads: an adapter whose units are never negative."""
    assert layer.adapter is not None
    torch.nn.init.constant_(layer.adapter.down_bias, 50.0)
    for product in (layer.block.attention.out, layer.block.feed_forward.down):
        torch.nn.init.zeros_(product.weight)


@torch.no_grad()
def test_what_is_linear_is_stood_in_for_exactly(attention: str):
    """By a map of the adapter's rank; one of a smaller rank cannot."""
    batches = batched(texts(60), 8)
    apart = {}
    for rank in (3, 4):
        model = dense_model("roberta-prelayernorm")
        for layer in model.coda_layers():
            linear(layer)
        wanted = [model(**inputs).logits for inputs in batches]
        with_stand_ins(model, attention, rank=rank)
        fit_stand_ins(model, batches, ridge=1e-13)
        apart[rank] = max(
            float((model(**i).logits - logits).abs().max()) for i, logits in zip(batches, wanted, strict=True)
        )
    assert apart[4] < 1e-6
    assert apart[3] > 1e-3


@torch.no_grad()
def test_thin_keys_and_values_of_full_rank_are_the_exact_ones(family: str):
    """They are an affine map of what attention reads, if they are to be those of the routed model's own states."""
    thin = with_stand_ins(dense_model(family), "k_to_all", thin=32)
    exact = with_stand_ins(dense_model(family), "k_to_all")
    batches = batched(texts(60), 8)
    for model in (thin, exact):
        fit_stand_ins(model, batches, corrected=False, ridge=1e-13)
    for inputs in batches:
        torch.testing.assert_close(thin(**inputs).logits, exact(**inputs).logits, rtol=0, atol=1e-5)


def squared_error(model: CodaModel, wanted: CodaModel, batches: list[Batch]) -> float:
    total = 0.0
    for inputs in batches:
        mask = model.mask(inputs)
        states = [one(**inputs, output_hidden_states=True).hidden_states[-1][mask] for one in (model, wanted)]
        total += float((states[0] - states[1]).square().sum())
    return total


@torch.no_grad()
def test_states_come_closer_to_the_dense_ones(family: str, attention: str):
    batches, wanted = batched(texts(40), 20), dense_model(family)
    errors = []
    for corrected in (None, False, True):
        model = with_stand_ins(dense_model(family), attention)
        if corrected is not None:
            fit_stand_ins(model, batches, corrected=corrected)
        errors.append(squared_error(model, wanted, batches))
    assert errors[0] > errors[1] > errors[2]


@torch.no_grad()
def test_a_layer_at_r_1_keeps_its_own():
    model = with_stand_ins(dense_model(), "k_to_k")
    model.set_reduction([1, 4])
    before = maps(model)
    fit_stand_ins(model, batched(ROWS, 7))
    after = maps(model)
    assert torch.equal(before["layer 0"], after["layer 0"])
    assert not torch.equal(before["layer 1"], after["layer 1"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_fit_too(dtype: torch.dtype, attention: str):
    model = with_stand_ins(dense_model(), attention)
    wanted = maps(model)
    fit_stand_ins(model.to(dtype), batched(ROWS, 7))
    fitted = maps(model)
    assert {one.dtype for one in fitted.values()} == {dtype}
    assert all(torch.isfinite(one).all() for one in fitted.values())
    assert all(not torch.equal(fitted[name].double(), wanted[name]) for name in fitted)


def test_texts_all_alike_give_finite_stand_ins(attention: str):
    model = with_stand_ins(dense_model(), attention, rank=4)
    batches = batched([torch.tensor([9, 8, 7, 6, 5])] * 12, 4)
    fit_stand_ins(model, batches)
    with torch.no_grad():
        assert torch.isfinite(model(**batches[0]).logits).all()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_is_left_behind(scratch: Path):
    fit_stand_ins(with_stand_ins(dense_model(), "k_to_k"), batched(ROWS, 7))
    assert list(scratch.iterdir()) == []

    def interrupt(what: str, done: int, steps: int) -> None:
        if done == 1:
            assert list(scratch.rglob("*.npy")) != []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_stand_ins(with_stand_ins(dense_model(), "k_to_k"), batched(ROWS, 7), progress=interrupt)
    assert list(scratch.iterdir()) == []


def test_what_cannot_be_fitted_is_said(scratch: Path, monkeypatch: pytest.MonkeyPatch):
    batches = batched(ROWS, 7)
    with pytest.raises(ConfigError, match="no stand-ins to fit"):
        fit_stand_ins(dense_model(), batches)
    few = batched(ROWS[:1], 1)
    with pytest.raises(
        ConfigError, match=r"^layer 0 leaves \d+ tokens of these texts, and stand-ins of rank 30 need 31 or"
    ):
        fit_stand_ins(with_stand_ins(dense_model(), "k_to_k", rank=30), few)
    all_routed = with_stand_ins(dense_model(), "k_to_k")
    all_routed.set_reduction(ALL_BUT_IN_NAME)
    with pytest.raises(ConfigError, match="^layer 0 leaves 0 tokens"):
        fit_stand_ins(all_routed, batches)
    broken = with_stand_ins(dense_model(), "k_to_k")
    with torch.no_grad():
        list(broken.coda_layers())[1].block.feed_forward.down.bias[0] = float("inf")
    with pytest.raises(ConfigError, match="^layer 1 gives NaN or infinite values"):
        fit_stand_ins(broken, batches)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ConfigError, match="No space left on device.*: set TMPDIR to a folder with more room"):
        fit_stand_ins(with_stand_ins(dense_model(), "k_to_k"), batches)
    assert list(scratch.iterdir()) == []

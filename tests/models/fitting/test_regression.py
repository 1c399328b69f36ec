"""Sums and what is solved from them, against numpy on all rows at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_models.errors import ConfigError
from coda_models.fitting.regression import Affine, Regression

CPU = torch.device("cpu")


def drawn(seed: int, rows: int = 60, inputs: int = 7, outputs: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and weights; x far from centred, some of its columns wide and some narrow."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, inputs)) * np.geomspace(0.1, 10, inputs) + random.normal(size=inputs) * 3
    y = x @ random.normal(size=(inputs, outputs)) + random.normal(size=(rows, outputs)) + 2
    return x, y, random.uniform(size=rows) * (random.uniform(size=rows) > 0.2)


def summed(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, size: int = 60) -> Regression:
    regression = Regression("the test", x.shape[1], y.shape[1], CPU)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        tensors = (torch.from_numpy(one[part]) for one in (x, y))
        regression.add(*tensors, None if weight is None else torch.from_numpy(weight[part]))
    return regression


def centred(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Times the root of their weights, which makes least squares of them weighted."""
    return (x - weight @ x / weight.sum()) * np.sqrt(weight)[:, None]


def oracle(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float) -> np.ndarray:
    """W by least squares on rows below which the ridge stands as rows of its own."""
    x, y = centred(x, weight), centred(y, weight)
    below = np.eye(x.shape[1]) * np.sqrt(ridge * np.square(x).sum() / weight.sum())
    return np.linalg.lstsq(np.vstack([x, below]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 0.5]), st.integers(1, 60), st.booleans())
def test_solved_is_weighted_ridge_whatever_the_batches(seed: int, ridge: float, size: int, weighted: bool):
    x, y, weight = drawn(seed)
    regression = summed(x, y, weight if weighted else None, size)
    weight = weight if weighted else np.ones(len(x))
    wanted = oracle(x, y, weight, ridge)
    fitted = regression.solve(ridge)
    np.testing.assert_allclose(fitted.weight, wanted, rtol=0, atol=1e-7)
    means = (weight @ x / weight.sum(), weight @ y / weight.sum())
    np.testing.assert_allclose(fitted.bias, means[1] - means[0] @ wanted, rtol=0, atol=1e-6)
    assert regression.rows == (weight > 0).sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-2]), st.integers(1, 8))
def test_a_thin_map_is_the_best_of_its_rank(seed: int, ridge: float, rank: int):
    """Eckart and Young: what is left of the fit, ridge rows included, are its singular values behind the rank."""
    x, y, weight = drawn(seed)
    regression = summed(x, y, weight)
    thin = regression.thin(regression.solve(ridge), rank, ridge)
    assert thin.down.shape == (7, rank)
    assert thin.up.shape == (rank, 5)
    full = oracle(x, y, weight, ridge)
    x = centred(x, weight)
    rows = np.vstack([x, np.eye(7) * np.sqrt(ridge * np.square(x).sum() / weight.sum())])
    singular = np.linalg.svd(rows @ full, compute_uv=False)
    left = np.square(rows @ (full - (thin.down @ thin.up).numpy())).sum()
    np.testing.assert_allclose(left, np.square(singular[rank:]).sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [5, 9])
def test_full_rank_is_plain_ridge(rank: int):
    x, y, weight = drawn(0)
    regression = summed(x, y, weight)
    plain = regression.solve(1e-3)
    thin = regression.thin(plain, rank, 1e-3)
    torch.testing.assert_close(thin.down @ thin.up, plain.weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(thin.bias, plain.bias, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_a_known_map_is_thinned_as_one_fitted_to_what_it_gives(seed: int, rank: int):
    x, y, weight = drawn(seed)
    w, b = np.random.default_rng(seed).normal(size=(7, 5)), np.arange(5.0)
    known = summed(x, y, weight).thin(Affine(torch.from_numpy(w), torch.from_numpy(b)), rank)
    regression = summed(x, x @ w + b, weight)
    fitted = regression.thin(regression.solve(0.0), rank)
    torch.testing.assert_close(known.down @ known.up, fitted.down @ fitted.up, rtol=0, atol=1e-6)
    torch.testing.assert_close(known.bias, fitted.bias, rtol=0, atol=1e-6)


def test_maps_are_put_together():
    x = torch.randn(4, 3, dtype=torch.float64)
    first = Affine(torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    second = Affine(torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
    then = first.added().then(second).part(slice(1, 4))
    wanted = ((x + x @ first.weight + first.bias) @ second.weight + second.bias)[:, 1:4]
    torch.testing.assert_close(x @ then.weight + then.bias, wanted)


def test_rows_that_are_all_alike_give_the_mean():
    """A singular fit: nothing varies, so nothing can be told from it."""
    x, y, _ = drawn(0)
    fitted = summed(np.ones_like(x), y, None).solve(1e-3)
    torch.testing.assert_close(fitted.weight, torch.zeros(7, 5, dtype=torch.float64), rtol=0, atol=1e-9)
    np.testing.assert_allclose(fitted.weight.sum(0) + fitted.bias, y.mean(0), atol=1e-9)


@pytest.mark.parametrize("rows", [0, 2])
def test_fewer_rows_than_inputs_are_finite(rows: int):
    x, y, _ = drawn(0, rows=rows)
    fitted = summed(x, y, None).solve(1e-3)
    assert torch.isfinite(fitted.weight).all()
    assert torch.isfinite(fitted.bias).all()


def test_nan_is_refused_by_the_name_of_what_gave_it():
    x, y, _ = drawn(0)
    y[3, 1] = np.nan
    with pytest.raises(ConfigError, match="^the test gives NaN or infinite values for these texts"):
        summed(x, y, None).solve(1e-3)

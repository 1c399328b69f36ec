"""Out-of-distribution scores against their formulas in float64, and the detector inside a model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_coda
from torch import Tensor

from coda_models import CodaConfig
from coda_models.ood import Cosine, FromLogits, Mahalanobis, OodDetector


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_scores_from_logits(seed: int):
    logits = drawn(seed, 5, 7)
    wide = logits.double().numpy()
    shifted = np.exp(wide - wide.max(-1, keepdims=True))
    wanted = {
        "msp": -np.log((shifted / shifted.sum(-1, keepdims=True)).max(-1)),
        "energy": -np.log(np.exp(wide).sum(-1)),
        "maxlogit": -wide.max(-1),
    }
    for method, scores in wanted.items():
        np.testing.assert_allclose(FromLogits(method)(drawn(0, 5, 3), logits), scores, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_cosine_of_the_nearest(seed: int):
    known, features = drawn(seed, 9, 6), drawn(seed + 1, 4, 6)
    a, b = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=-1, keepdims=True) for x in (features, known))
    np.testing.assert_allclose(Cosine(known)(features, features), 1 - (a @ b.T).max(-1), atol=1e-6)


def test_a_known_text_is_no_distance_away_and_a_text_of_zeros_is_finite():
    known = drawn(0, 9, 6)
    score = Cosine(known)
    torch.testing.assert_close(score(known, known), torch.zeros(9), atol=1e-6, rtol=0)
    assert score(torch.zeros(1, 6), known).tolist() == [1.0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_distance_to_the_nearest_class(seed: int):
    means, features = drawn(seed, 3, 6).double(), drawn(seed + 1, 4, 6)
    root = drawn(seed + 2, 6, 6).double()
    covariance = (root @ root.T + torch.eye(6)).numpy()
    values, vectors = np.linalg.eigh(covariance)
    whiten = torch.from_numpy(vectors / np.sqrt(values))
    centre = means.mean(0)
    score = Mahalanobis(centre, whiten, (means - centre) @ whiten)
    apart = features.double().numpy()[:, None] - means.numpy()[None]
    wanted = np.einsum("ecd,df,ecf->ec", apart, np.linalg.inv(covariance), apart).min(-1)
    np.testing.assert_allclose(score(features, features), wanted, rtol=1e-3, atol=1e-3)


def test_flags_are_scores_above_the_threshold():
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    scores, flags = OodDetector("maxlogit", FromLogits("maxlogit"), -2.0, 0.95)(logits, logits)
    assert scores.tolist() == [-1.0, -2.0, -3.0]
    assert flags.tolist() == [True, False, False]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_detector_changes_no_answer(pooling: str):
    model = tiny_coda("bert", CodaConfig(reduction=2, pooling=pooling))
    ids = torch.arange(4, 26).reshape(2, 11)
    with torch.inference_mode():
        before = model(input_ids=ids)
        model.ood = OodDetector("energy", FromLogits("energy"), 0.0, 0.95)
        after = model(input_ids=ids)
    assert before.ood_score is None
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.features, before.features)
    torch.testing.assert_close(after.ood_score, -after.logits.logsumexp(-1))
    assert after.features.shape == (2, 32)

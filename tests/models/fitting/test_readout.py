"""A mended readout: exact where the routed states are an affine map of the dense ones, and nothing but the head changes."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import tiny_coda
from tests.models.fitting.texts import Batch, batched, dense_model, texts, with_stand_ins
from torch import Tensor, nn

from coda_models import CodaConfig, CodaModel, mend_readout
from coda_models.errors import ConfigError, UnsupportedModelError
from coda_models.sentence import SentenceModule

BATCHES = batched(texts(60), 8)
TASKS = ("sequence-classification", "token-classification", "feature-extraction")
ANSWER = dict.fromkeys(TASKS[:2], "logits") | {"feature-extraction": "sentence_embedding"}


@torch.no_grad()
def shifted(dense: CodaModel) -> CodaModel:
    """The same model, its last states stretched and moved by a diagonal map."""
    model = deepcopy(dense)
    last = list(model.coda_layers())[-1]
    for name, parameter in (
        [*last.block.norm2.named_parameters()] if model.final_norm is None else [*model.final_norm.named_parameters()]
    ):
        drawn = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)).to(parameter)
        parameter.mul_(0.5 + drawn) if name == "weight" else parameter.add_(drawn)
    return model


@torch.no_grad()
def apart(model: CodaModel, dense: CodaModel, batches: list[Batch] = BATCHES) -> float:
    """The largest difference between two models' answers."""
    field, largest = ANSWER[model.coda_config.task], 0.0
    for inputs in batches:
        given = [getattr(one(**inputs), field) for one in (model, dense)]
        if model.coda_config.task == "token-classification":
            given = [one[model.mask(inputs)] for one in given]
        largest = max(largest, float((given[0] - given[1]).abs().max()))
    return largest


@pytest.mark.parametrize("task", TASKS)
def test_an_affine_map_of_states_is_mended_exactly(family: str, task: str):
    dense = dense_model(family, task, bottleneck=0)
    model = shifted(dense)
    assert apart(model, dense) > 0.05
    mend_readout(model, dense, BATCHES, ridge=1e-13)
    assert apart(model, dense) < 1e-6


@pytest.mark.parametrize(
    ("poolings", "modules", "wanted"),
    [
        (("mean",), (), ["Dense"]),
        (("first", "mean"), (), ["Dense"]),
        (("mean",), (SentenceModule("Normalize"),), ["Dense", "Normalize"]),
        (("mean",), (SentenceModule("Dense", 32, 16, activation="Tanh"), SentenceModule("Normalize")), None),
        (("mean",), (SentenceModule("Dense", 32, 16, bias=True),), None),
        (("mean_sqrt_len_tokens",), (SentenceModule("LayerNorm", 32, 32),), ["Dense", "LayerNorm"]),
        (("lasttoken",), (SentenceModule("Truncate", outputs=8),), ["Dense", "Truncate"]),
    ],
)
def test_embeddings_are_mended_before_what_follows_pooling(
    poolings: tuple[str, ...], modules: tuple[SentenceModule, ...], wanted: list[str] | None
):
    """In the Dense that stands there, or in one that is put there; the embedding's width stays."""
    config = CodaConfig(reduction=1, bottleneck=0, task=TASKS[2], pooling=poolings, modules=modules)
    dense = tiny_coda("bert", config).double()
    model = shifted(dense)
    if poolings == (
        "mean_sqrt_len_tokens",
    ):  # a constant grows with the text's length: only a stretch is an affine map
        with torch.no_grad():
            norm, own = (list(one.coda_layers())[-1].block.norm2 for one in (model, dense))
            norm.bias.copy_(own.bias * norm.weight / own.weight)
    mend_readout(model, dense, BATCHES, ridge=1e-13)
    assert apart(model, dense) < 1e-6
    kinds = [module.kind for module in model.coda_config.modules]
    assert kinds == (wanted or [module.kind for module in modules])
    assert model.coda_config.modules[0].bias
    assert len(model.after_pooling) == len(kinds)
    assert dense.coda_config.modules == modules


@torch.no_grad()
def pooled(model: CodaModel, rows: list[Batch]) -> np.ndarray:
    return np.vstack([model(**inputs).features.numpy() for inputs in rows])


@pytest.mark.parametrize("size", [1, 8, 60])
def test_the_fit_is_ridge_on_all_texts(size: int):
    """Of a classifier, whose pooled states its output shows, and whose first product is the pooler's."""
    dense = dense_model()
    model = with_stand_ins(deepcopy(dense), "k_to_k")
    x, y = pooled(model, BATCHES), pooled(dense, BATCHES)
    centred = x - x.mean(0)
    ridge = np.eye(32) * np.sqrt(0.2 * np.square(centred).sum() / len(x))  # pulls to the identity
    w = np.linalg.lstsq(np.vstack([centred, ridge]), np.vstack([y - y.mean(0), ridge]), rcond=None)[0]
    product = dense.head[0].dense  # type: ignore[index,union-attr]
    wanted = (x @ w + (y.mean(0) - x.mean(0) @ w)) @ product.weight.detach().numpy().T + product.bias.detach().numpy()
    mend_readout(model, dense, batched(texts(60), size, 1), ridge=0.2)
    product = model.head[0].dense  # type: ignore[index,union-attr]
    found = x @ product.weight.detach().numpy().T + product.bias.detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)


def test_only_the_first_product_changes_and_the_dense_model_not_at_all():
    dense = dense_model()
    dense.set_reduction(2)  # it is run at r = 1 and left as it was
    before = deepcopy(dense)
    model = with_stand_ins(deepcopy(dense), "k_to_all")
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mend_readout(model, dense, BATCHES)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, own[name])}
    assert changed == {"head.0.dense.weight", "head.0.dense.bias"}
    assert all(
        torch.equal(a, b) for a, b in zip(dense.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert [layer.reduction for layer in dense.coda_layers()] == [2, 2]


class Residual(nn.Module):
    """A head whose product is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(32, 32).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.product(x.select(1, 0)))


@pytest.mark.parametrize("head", [nn.Flatten, Residual])
def test_a_head_without_a_first_product_is_refused(head: Callable[[], nn.Module]):
    model = dense_model()
    model.head = head()
    with pytest.raises(UnsupportedModelError, match="the head of this bert model begins with no linear layer"):
        mend_readout(model, deepcopy(model), BATCHES)


@torch.no_grad()
def test_a_product_without_a_bias_gets_one():
    dense = dense_model("bert", "token-classification", bottleneck=0)
    dense.head[1].bias = None  # type: ignore[index,union-attr]
    model = shifted(dense)
    mend_readout(model, dense, BATCHES, ridge=1e-13)
    assert apart(model, dense) < 1e-6


@torch.no_grad()
def test_texts_all_alike_and_few_are_finite(family: str):
    dense = dense_model(family)
    for rows in ([torch.tensor([9, 8, 7, 6])] * 3, texts(2)):
        model, few = with_stand_ins(deepcopy(dense), "k_to_k"), batched(rows, 3)
        mend_readout(model, dense, few)
        assert apart(model, dense, few) < 1.0  # at the mean of what they say, or nearer


def test_what_cannot_be_fitted_is_said():
    dense: Any = dense_model()
    with pytest.raises(ConfigError, match="no texts to fit on"):
        mend_readout(deepcopy(dense), dense, [])
    with torch.no_grad():
        list(dense.coda_layers())[1].block.feed_forward.down.bias[0] = float("nan")
    with pytest.raises(ConfigError, match="^the readout gives NaN or infinite values"):
        mend_readout(deepcopy(dense), dense, BATCHES)

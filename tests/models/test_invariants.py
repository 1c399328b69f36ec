"""The six invariants of CODA.md, in torch, on every family, both attentions, with adapters and with stand-ins."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_coda
from tests.models.inputs import ragged
from torch import Tensor

from coda_models import CodaConfig, CodaModel
from coda_models.conversion import add_stand_ins
from coda_models.layers.attention import Places, bias_between
from coda_models.layers.layer import CodaLayer
from coda_ops.capacity import slot_count

some = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
shapes = {"lengths": st.lists(st.integers(1, 40), min_size=1, max_size=4), "seed": st.integers(0, 2**16)}


FORMS: dict[str, dict[str, Any]] = {
    "k_to_k": {},
    "k_to_all": {"attention": "k_to_all"},
    "k_to_k, stand-ins": {"stand_in": 4},
    "k_to_all, stand-ins": {"attention": "k_to_all", "stand_in": 4, "bottleneck": 0},
    "k_to_all, thin": {"attention": "k_to_all", "stand_in": 4, "key_value_rank": 6},
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FORMS[request.param]


@pytest.fixture
def model(family: str, form: dict[str, Any]) -> CodaModel:
    return tiny_coda(family, CodaConfig(reduction=3, **form)).double()


def batch(lengths: list[int], seed: int, width: int = 32) -> tuple[Tensor, Tensor]:
    """Hidden states and a ragged mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max(lengths), width, dtype=torch.float64, generator=generator)
    return x, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def table(model: CodaModel, tokens: int) -> Tensor | None:
    return None if model.relative_bias is None else model.relative_bias.table(tokens)


def first(model: CodaModel) -> CodaLayer:
    return next(model.coda_layers())


def everything(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decision for every valid token, valid ones first."""
    tokens = mask.shape[1]
    positions = torch.arange(tokens).expand_as(mask)
    order = torch.where(mask, positions, positions + tokens).sort(-1).values % tokens
    used = torch.arange(tokens) < mask.sum(-1, keepdim=True)
    return order, used.float(), used


@torch.no_grad()
@some
@given(**shapes)
def test_r_1_is_the_dense_model(model: CodaModel, lengths: list[int], seed: int):
    x, mask = batch(lengths, seed)
    layer = first(model)
    layer.reduction = Fraction(1)
    dense, none = layer(x, mask, table(model, x.shape[1]))
    assert none is None
    layer.reduction = Fraction(1, 1) + Fraction(1, 10**6)  # so close to 1 that k = n, through the routed path
    routed, routing = layer(x, mask, table(model, x.shape[1]))
    assert routing is not None
    assert routing.gates[routing.used].eq(1).all()
    torch.testing.assert_close(routed[mask], dense[mask], rtol=0, atol=1e-12)


@torch.no_grad()
@some
@given(**shapes)
def test_unrouted_tokens_keep_what_stands_beside_the_layer_bit_for_bit(model: CodaModel, lengths: list[int], seed: int):
    x, mask = batch(lengths, seed)
    layer = first(model)
    y, routing = layer(x, mask, table(model, x.shape[1]))
    beside = layer.stand_in or layer.adapter
    assert beside is not None
    expected = x + beside(layer.block.read(x))
    routed = torch.zeros_like(mask).scatter(1, routing.indices, routing.used)
    assert torch.equal(y[~routed], expected[~routed])

    layer.block.attention.out.weight.data += 1.0  # whatever the heavy path makes of the routed ones
    changed, _ = layer(x, mask, table(model, x.shape[1]))
    assert torch.equal(changed[~routed], y[~routed])
    layer.block.attention.out.weight.data -= 1.0


@torch.no_grad()
@some
@given(**shapes, more=st.integers(1, 20))
def test_padding_and_company_change_nothing(model: CodaModel, lengths: list[int], seed: int, more: int):
    _x, mask = batch(lengths, seed)
    ids = torch.randint(4, 100, mask.shape, generator=torch.Generator().manual_seed(seed)) * mask
    together = model(input_ids=ids, attention_mask=mask.long()).logits
    for i, n in enumerate(lengths):
        alone = model(input_ids=ids[i : i + 1, :n]).logits
        padded = model(
            input_ids=torch.nn.functional.pad(ids[i : i + 1, :n], (0, more)),
            attention_mask=torch.nn.functional.pad(torch.ones(1, n, dtype=torch.long), (0, more)),
        ).logits
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-9)
        torch.testing.assert_close(padded, alone, rtol=0, atol=1e-9)


@torch.no_grad()
@some
@given(**shapes)
def test_selection_is_a_sorted_set_of_k_valid_positions(model: CodaModel, lengths: list[int], seed: int):
    x, mask = batch(lengths, seed)
    _, routing = first(model)(x, mask, table(model, x.shape[1]))
    for i, n in enumerate(lengths):
        chosen = routing.indices[i][routing.used[i]].tolist()
        assert len(chosen) == slot_count(n, Fraction(3)) == max(1, -(-n // 3))
        assert chosen == sorted(set(chosen))
        assert mask[i, chosen].all()
        best = routing.scores[i, :n].argsort(descending=True, stable=True)[: len(chosen)]
        assert chosen == sorted(best.tolist())


@torch.no_grad()
def test_equal_scores_select_the_first_positions(model: CodaModel):
    x, mask = batch([9, 4], 0)
    layer = first(model)
    assert layer.router is not None
    torch.nn.init.zeros_(layer.router.weight)
    _, routing = layer(x, mask, table(model, 9))
    assert routing.indices[0][routing.used[0]].tolist() == [0, 1, 2]
    assert routing.indices[1][routing.used[1]].tolist() == [0, 1]


@torch.no_grad()
@some
@given(**shapes)
def test_all_tokens_as_queries_is_plain_attention(family: str, lengths: list[int], seed: int):
    model = tiny_coda(family, CodaConfig(reduction=3, attention="k_to_all")).double()
    x, mask = batch(lengths, seed)
    attention = first(model).block.attention
    positions = torch.arange(x.shape[1]).unsqueeze(0)
    places = Places(positions, positions, mask, table(model, x.shape[1]))
    bias = attention.logit_bias(places, x.dtype)
    ours = attention(x, x, places)

    projected = [attention.query(x), attention.key(x)]
    if attention.rotary is not None:
        projected = [attention.rotary(part, positions, 4) for part in projected]
    heads = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in projected]
    logits = heads[0] @ heads[1].transpose(-1, -2) / 8**0.5 + bias
    mixed = logits.softmax(-1) @ attention.value(x).unflatten(-1, (4, -1)).transpose(1, 2)
    plain = attention.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours[mask], plain[mask], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("form", [form for form in FORMS.values() if "stand_in" in form], ids=str)
def test_at_r_1_stand_ins_leave_the_model_that_was_there(family: str, form: dict[str, Any]):
    inputs = ragged([12, 5, 1])
    adapters = {"bottleneck": form.get("bottleneck", 64)}
    dense = tiny_coda(family, CodaConfig(reduction=1, **adapters))
    routed = tiny_coda(family, CodaConfig(reduction=1, **form))
    routed.load_state_dict(dense.state_dict(), strict=False)  # adapters are drawn in another order
    assert torch.equal(routed(**inputs).logits, dense(**inputs).logits)
    add_stand_ins(dense, reduction=1, **{name: value for name, value in form.items() if name != "bottleneck"})
    assert torch.equal(dense(**inputs).logits, routed(**inputs).logits)


@torch.no_grad()
@some
@given(**shapes)
def test_thin_keys_and_values_of_full_rank_are_those_of_the_layer(family: str, lengths: list[int], seed: int):
    config = CodaConfig(reduction=3, attention="k_to_all", stand_in=4, key_value_rank=32)
    layer = first(model := tiny_coda(family, config).double())
    x, mask = batch(lengths, seed)
    thin, attention = layer.key_value, layer.block.attention
    assert thin is not None
    thin.down.copy_(torch.eye(32))
    thin.up.copy_(torch.cat((attention.key.weight, attention.value.weight)).T)
    biases = [linear.bias for linear in (attention.key, attention.value) if linear.bias is not None]
    thin.bias.copy_(torch.cat(biases) if biases else torch.zeros(64))
    full, routing = layer(x, mask, table(model, x.shape[1]))
    layer.key_value = None
    exact, _ = layer(x, mask, table(model, x.shape[1]), routing[1:])
    torch.testing.assert_close(full[mask], exact[mask], rtol=0, atol=1e-10)


@torch.no_grad()
@some
@given(**shapes)
def test_replaying_a_selection_reproduces_it(model: CodaModel, lengths: list[int], seed: int):
    x, mask = batch(lengths, seed)
    layer = first(model)
    y, routing = layer(x, mask, table(model, x.shape[1]))
    again, replayed = layer(x, mask, table(model, x.shape[1]), routing[1:])
    assert torch.equal(replayed.gates, routing.gates)
    assert torch.equal(again, y)


@torch.no_grad()
def test_deciding_for_everything_is_the_dense_layer(model: CodaModel):
    x, mask = batch([12, 5], 3)
    layer = first(model)
    layer.reduction = Fraction(1)
    dense, _ = layer(x, mask, table(model, 12))
    layer.reduction = Fraction(2)
    routed, routing = layer(x, mask, table(model, 12), everything(mask))
    assert routing.used.sum(-1).tolist() == [12, 5]
    torch.testing.assert_close(routed[mask], dense[mask], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("form", [form for form in FORMS.values() if "attention" not in form], ids=str)
@some
@given(**shapes)
def test_routed_tokens_are_those_of_the_dense_layer_that_masks_all_others(
    family: str, form: dict[str, Any], lengths: list[int], seed: int
):
    """In k-to-k, with gates of 1: what attention does by positions, it does by those in the whole sequence."""
    model = tiny_coda(family, CodaConfig(reduction=3, **form)).double()
    x, mask = batch(lengths, seed)
    for layer in model.coda_layers():
        _, routing = layer(x, mask, table(model, x.shape[1]))
        chosen = torch.zeros_like(mask).scatter(1, routing.indices, routing.used)
        y, _ = layer(x, mask, table(model, x.shape[1]), (routing.indices, routing.used.double(), routing.used))
        dense = layer.dense(x, chosen, table(model, x.shape[1]))
        torch.testing.assert_close(y[chosen], dense[chosen], rtol=0, atol=1e-10)


@torch.no_grad()
def test_relative_bias_belongs_to_original_positions():
    model = tiny_coda("mpnet")
    assert model.relative_bias is not None
    by_distance = model.relative_bias.table(20)
    everywhere = torch.arange(20).unsqueeze(0)
    full = bias_between(by_distance, everywhere, everywhere)
    rows, columns = torch.tensor([[1, 7, 19]]), torch.tensor([[0, 7, 12, 18]])
    assert torch.equal(bias_between(by_distance, rows, columns), full[:, :, rows[0]][..., columns[0]])

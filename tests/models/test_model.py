"""CODA.md's invariants on whole models of every family, and what CodaModel offers around them."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import example_inputs, tiny_coda
from tests.models.inputs import ALL_BUT_IN_NAME, ragged

from coda_models import CodaConfig, from_pretrained
from coda_models.conversion import backbone_digest
from coda_models.errors import ConfigError
from coda_models.layers.embeddings import MaskedEmbeddings

TASKS = ("sequence-classification", "token-classification", "feature-extraction")
examples = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=["k_to_k", "k_to_all"])
def attention(request):
    return request.param


def hidden(output, mask):
    """What a model says of every valid token. [valid tokens, width]"""
    return output.last_hidden_state[mask.bool()]


def test_r_1_is_the_dense_adapter_model(family, attention):
    """Invariant 1, and 5 with k_to_all: the routed path with nothing left out is the dense path."""
    model = tiny_coda(family, CodaConfig(task="feature-extraction", attention=attention)).double()
    batch = ragged([21, 1, 13])
    model.set_reduction(1)
    dense = model(**batch, output_routing=True)
    model.set_reduction(ALL_BUT_IN_NAME)
    routed = model(**batch, output_routing=True)
    assert dense.routing == (None, None)
    assert all((routing.gates[routing.used] == 1).all() for routing in routed.routing)
    mask = batch["attention_mask"]
    torch.testing.assert_close(hidden(routed, mask), hidden(dense, mask), rtol=0, atol=1e-10)
    torch.testing.assert_close(routed.sentence_embedding, dense.sentence_embedding, rtol=0, atol=1e-10)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    more=st.integers(0, 9),
    reduction=st.sampled_from([Fraction(2), Fraction(7, 2), Fraction(8)]),
    seed=st.integers(0, 99),
)
@examples
def test_padding_and_batching_change_no_valid_output(family, attention, lengths, more, reduction, seed):
    """Invariants 3 and 4."""
    model = tiny_coda(family, CodaConfig(task="feature-extraction", attention=attention, reduction=reduction)).double()
    batch = ragged(lengths, max(lengths) + more, seed)
    together = model(**batch, output_routing=True)
    for row, n in enumerate(lengths):
        alone = model(input_ids=batch["input_ids"][row : row + 1, :n], output_routing=True)
        torch.testing.assert_close(together.last_hidden_state[row, :n], alone.last_hidden_state[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(together.sentence_embedding[row], alone.sentence_embedding[0], rtol=0, atol=1e-9)
        for wide, narrow in zip(together.routing, alone.routing, strict=True):
            chosen = wide.indices[row][wide.used[row]].tolist()
            assert chosen == narrow.indices[0][narrow.used[0]].tolist()
            assert len(chosen) == math.ceil(n / reduction)
            assert chosen == sorted(set(chosen))
            assert chosen[-1] < n


@pytest.mark.parametrize("task", TASKS)
def test_float32_is_near_float64(family, attention, task):
    """With the float64 model's decisions replayed, so that a near tie cannot make the difference."""
    config = CodaConfig(task=task, attention=attention, reduction=2)
    batch = ragged([17, 5, 9])
    exact = tiny_coda(family, config).double()(**batch, output_routing=True)
    single = tiny_coda(family, config)(**batch, decisions=[routing[1:] for routing in exact.routing])
    name = "last_hidden_state" if task == "feature-extraction" else "logits"
    assert single[name].dtype == torch.float32
    torch.testing.assert_close(single[name].double(), exact[name], rtol=0, atol=2e-5)


def test_replaying_its_own_decisions_changes_nothing(family, attention):
    model = tiny_coda(family, CodaConfig(reduction=2, attention=attention))
    batch = ragged([17, 5, 9])
    first = model(**batch, output_routing=True)
    again = model(**batch, decisions=[routing[1:] for routing in first.routing])
    assert torch.equal(first.logits, again.logits)


def test_only_routed_layers_route():
    model = tiny_coda("bert", CodaConfig(reduction=4, routed_layers=[1]))
    assert [layer.router is None for layer in model.coda_layers()] == [True, False]
    routing = model(**ragged([8]), output_routing=True).routing
    assert routing[0] is None
    assert routing[1].used.sum() == 2


def test_each_layer_has_its_own_reduction():
    model = tiny_coda("bert", CodaConfig(reduction=[2, 8]))
    routing = model(**ragged([16]), output_routing=True).routing
    assert [int(decision.used.sum()) for decision in routing] == [8, 2]


def test_set_reduction_moves_layers_and_configuration():
    model = tiny_coda("bert", CodaConfig(reduction=4))
    model.set_reduction(["7/2", 1])
    assert [layer.reduction for layer in model.coda_layers()] == [Fraction(7, 2), 1]
    assert model.coda_config.reduction == (Fraction(7, 2), Fraction(1))


def test_set_attention_moves_layers_and_configuration():
    model = tiny_coda("bert", CodaConfig(reduction=4))
    model.set_attention("k_to_all")
    assert {layer.attention for layer in model.coda_layers()} == {"k_to_all"} == {model.coda_config.attention}
    with pytest.raises(ConfigError, match="k_to_some"):
        model.set_attention("k_to_some")


def test_routing_is_returned_only_when_asked_for():
    assert tiny_coda("bert")(**ragged([8])).routing is None


def test_pooling():
    batch = ragged([9, 4])
    mean = tiny_coda("bert", CodaConfig(task="feature-extraction"))(**batch)
    first = tiny_coda("bert", CodaConfig(task="feature-extraction", pooling="first"))(**batch)
    assert torch.equal(mean.last_hidden_state, first.last_hidden_state)
    for row, n in enumerate((9, 4)):
        wanted = mean.last_hidden_state[row, :n].mean(0)
        torch.testing.assert_close(mean.sentence_embedding[row], wanted, rtol=0, atol=1e-6)
        assert torch.equal(first.sentence_embedding[row], first.last_hidden_state[row, 0])


def test_pooling_an_empty_text_is_finite():
    batch = ragged([9, 4])
    batch["attention_mask"][1] = 0
    embedding = tiny_coda("bert", CodaConfig(task="feature-extraction"))(**batch).sentence_embedding
    assert bool(embedding.isfinite().all())
    assert (embedding[1] == 0).all()


@pytest.mark.parametrize("task", TASKS[:2])
def test_the_loss_is_cross_entropy(task):
    model = tiny_coda("bert", CodaConfig(task=task))
    batch = ragged([9, 4])
    labels = torch.tensor([2, 0]) if task == TASKS[0] else torch.where(batch["attention_mask"].bool(), 1, -100)
    output = model(**batch, labels=labels)
    chances = output.logits.log_softmax(-1)
    counted = labels != -100
    wanted = -chances[counted].gather(-1, labels[counted].unsqueeze(-1)).mean()
    torch.testing.assert_close(output.loss, wanted, rtol=0, atol=1e-6)
    assert model(**batch).loss is None


def test_token_types_matter_where_a_family_has_them():
    model = tiny_coda("bert")
    batch = ragged([9])
    zeros, ones = torch.zeros(1, 9, dtype=torch.int64), torch.ones(1, 9, dtype=torch.int64)
    assert torch.equal(model(**batch).logits, model(**batch, token_type_ids=zeros).logits)
    assert not torch.equal(model(**batch).logits, model(**batch, token_type_ids=ones).logits)


def test_example_inputs_run_at_the_longest_length(family):
    model = tiny_coda(family)
    inputs = example_inputs(model, 2, model.signature.max_length)
    assert tuple(inputs) == model.signature.names
    assert model(**inputs).logits.shape == (2, 3)
    assert model(**ragged([model.signature.max_length])).logits.isfinite().all()
    model.set_reduction(1)  # rotary positions are looked up for routed tokens alone
    with pytest.raises((IndexError, RuntimeError)):
        model(**ragged([model.signature.max_length + 1]))


def test_trainable_names_are_adapters_routers_norms_and_the_head(family):
    model = tiny_coda(family)
    trained = set(model.trainable_names())
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert all(parameter.requires_grad == (name in trained) for name, parameter in model.named_parameters())
    assert sum(".router." in name for name in trained) == 2
    assert sum(".adapter." in name for name in trained) == 8
    assert any(name.startswith("head.") for name in trained)
    norms = [name for name, _ in model.named_parameters() if "norm" in name.lower()]
    # Weight and bias of two a layer, and of the embeddings' or the final one; ModernBERT's have no bias, its first is none.
    assert len(norms) >= (2 * 2 + 1 if family == "modernbert" else 2 * (2 * 2 + 1))
    assert set(norms) <= trained
    assert frozen
    assert all(name.startswith(("embeddings.", "layers.", "relative_bias.")) for name in frozen)
    assert {name.split(".block.")[1].split(".")[0] for name in frozen if ".block." in name} == {
        "attention",
        "feed_forward",
    }


def test_norms_are_trained_whatever_their_type():
    model = tiny_coda("roberta-prelayernorm")
    for layer in model.coda_layers():
        layer.block.norm1, layer.block.norm2 = torch.nn.RMSNorm(32), torch.nn.Identity()
    model.final_norm = torch.nn.RMSNorm(32)
    trained = {name for name in model.trainable_names() if "norm" in name.lower()}
    assert trained == {
        *("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias", "final_norm.weight"),
        *(f"layers.{i}.block.norm1.weight" for i in range(2)),
    }


class Halved(MaskedEmbeddings):
    """Two inputs are one token, which is valid where the first of them is; padding is embedded as zeros."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, mask, **inputs):
        states = self.embeddings(**inputs) * mask.unsqueeze(-1)
        return states[:, ::2] + states[:, 1::2], mask[:, ::2]


def test_embeddings_may_read_the_mask_and_shorten_it():
    model = tiny_coda("bert", CodaConfig(reduction=2, task="feature-extraction"))
    plain = model.embeddings
    model.embeddings = Halved(plain)
    batch = ragged([12, 7, 2])
    output = model(**batch, output_hidden_states=True, output_routing=True)
    mask = batch["attention_mask"].bool()
    cleared = plain(input_ids=batch["input_ids"]) * mask.unsqueeze(-1)
    assert torch.equal(output.hidden_states[0], cleared[:, ::2] + cleared[:, 1::2])
    assert output.routing[0].used.sum(1).tolist() == [3, 2, 1]
    wanted = (output.last_hidden_state * mask[:, ::2, None]).sum(1) / mask[:, ::2].sum(1, keepdim=True)
    torch.testing.assert_close(output.sentence_embedding, wanted)


def test_the_backbone_digest_covers_the_encoder_and_nothing_trained_beside_it(family):
    model = tiny_coda(family)
    before = backbone_digest(model)
    assert before == model.coda_config.backbone_sha256
    for name, parameter in model.named_parameters():
        if ".adapter." in name or ".router." in name or name.startswith("head."):
            parameter.add_(1.0)
    assert backbone_digest(model) == before
    next(model.layers[1].block.feed_forward.parameters())[0] += 1e-3
    assert backbone_digest(model) != before


def test_a_mean_takes_the_first_tokens_place_in_the_head(family):
    """The same head, and padding has no part in the mean."""
    batch = ragged([9, 4])
    model = tiny_coda(family, CodaConfig(reduction=1, pooling="mean"))
    body = tiny_coda(family, CodaConfig(reduction=1, task="feature-extraction"))
    body.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    pooled = body(**batch).sentence_embedding
    assert model.head is not None
    torch.testing.assert_close(model(**batch).logits, model.head(pooled.unsqueeze(1)), rtol=0, atol=1e-5)
    first = tiny_coda(family, CodaConfig(reduction=1))(**batch).logits
    assert (first - model(**batch).logits).abs().max() > 1e-3


def test_an_empty_text_stands_for_nothing():
    ids = torch.full((1, 5), 7)
    model = tiny_coda("bert", CodaConfig(reduction=2, task="feature-extraction"))
    assert model(input_ids=ids, attention_mask=torch.zeros_like(ids)).sentence_embedding.eq(0).all()


def test_states_are_the_embeddings_and_every_layers_output(family):
    model, batch = tiny_coda(family, CodaConfig(reduction=2, task="feature-extraction")), ragged([9, 4])
    output = model(**batch, output_hidden_states=True)
    first, *others = output.hidden_states
    assert torch.equal(first, model.embeddings(input_ids=batch["input_ids"]))
    assert len(others) == len(model.layers)
    last = others[-1] if model.final_norm is None else model.final_norm(others[-1])
    assert torch.equal(last, output.last_hidden_state)


def test_what_libraries_ask_of_a_model(tmp_path, capsys):
    model = tiny_coda()
    assert model.config is model.hf_config
    model.print_trainable_parameters()
    trained = sum(model.get_parameter(name).numel() for name in model.trainable_names())
    every = sum(parameter.numel() for parameter in model.parameters())
    assert f"trainable params: {trained:,} || all params: {every:,} || " in capsys.readouterr().out
    model.save_pretrained(tmp_path / "folder")
    inputs = example_inputs(model, 2, 9)
    torch.testing.assert_close(from_pretrained(tmp_path / "folder").model(**inputs).logits, model(**inputs).logits)

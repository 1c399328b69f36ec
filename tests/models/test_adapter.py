"""The adapter that mixes neighbours: its formula, its start, and what it must not see."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_backbone, tiny_coda

from coda_compile import compile
from coda_models import CodaConfig, convert, load, save
from coda_models.adapter import Adapter


def mixing(width: int = 6, bottleneck: int = 4, span: int = 3) -> Adapter:
    """With random weights, in float64."""
    made = Adapter(width, bottleneck, span).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def oracle(adapter: Adapter, x: torch.Tensor, valid: list[bool]) -> torch.Tensor:
    """One text, a token and a channel at a time. x: [tokens, width]"""
    hidden = [torch.relu(row @ adapter.down + adapter.down_bias) for row in x]
    assert adapter.mix is not None
    reach = adapter.mix.shape[1] // 2
    out = []
    for i in range(len(x)):
        total = hidden[i].clone() if valid[i] else torch.zeros_like(hidden[i])
        for offset in range(-reach, reach + 1):
            j = i + offset
            if 0 <= j < len(x) and valid[j]:
                total += adapter.mix[:, offset + reach] * hidden[j]
        out.append(total @ adapter.up + adapter.up_bias)
    return torch.stack(out)


@torch.no_grad()
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.sampled_from([3, 5, 9]), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_it_is_the_formula(valid: list[bool], span: int, seed: int):
    torch.manual_seed(seed)
    adapter, x = mixing(span=span), torch.randn(1, len(valid), 6, dtype=torch.float64)
    mask = torch.tensor([valid])
    torch.testing.assert_close(adapter(x, mask)[mask], oracle(adapter, x[0], valid)[mask[0]], rtol=0, atol=1e-12)


@torch.no_grad()
def test_padding_on_either_side_is_nobodys_neighbour():
    adapter, x = mixing(span=5), torch.randn(1, 7, 6, dtype=torch.float64)
    alone = adapter(x, torch.ones(1, 7, dtype=torch.bool))
    noise = torch.randn(1, 3, 6, dtype=torch.float64)
    mask = torch.tensor([[False] * 3 + [True] * 7 + [False] * 3])
    padded = adapter(torch.cat([noise, x, noise], 1), mask)
    torch.testing.assert_close(padded[:, 3:10], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_it_starts_as_the_plain_adapter():
    plain, wide = Adapter(6, 4), Adapter(6, 4, span=5)
    for adapter in (plain, wide):
        torch.manual_seed(0)
        for parameter in (adapter.down, adapter.up):
            torch.nn.init.normal_(parameter)
    x, mask = torch.randn(2, 7, 6), torch.ones(2, 7, dtype=torch.bool)
    torch.testing.assert_close(wide(x, mask), plain(x, mask))
    assert set(plain.state_dict()) == {"down", "down_bias", "up", "up_bias"}


def test_the_convolution_is_trained():
    model = convert(tiny_backbone("bert"), CodaConfig(adapter_span=3))
    assert {name for name in model.trainable_names() if name.endswith("adapter.mix")} == {
        "layers.0.adapter.mix",
        "layers.1.adapter.mix",
    }


@pytest.mark.parametrize("family", ["bert", "roberta-prelayernorm"])
def test_a_model_of_every_variant_is_saved_compiled_and_verified(family: str, tmp_path: Path):
    config = CodaConfig(reduction=2, adapter_span=3, carry_scores=True, pooling="routed")  # every variant at once
    model = tiny_coda(family, config)
    for layer in model.coda_layers():
        assert layer.adapter is not None
        assert layer.adapter.mix is not None
        torch.nn.init.normal_(layer.adapter.mix, std=0.3)
    save(model, tmp_path / "model.pt")
    bundle = compile(load(tmp_path / "model.pt").model, output=tmp_path / "bundle")
    assert [layer.span for layer in bundle.manifest.layers] == [3, 3]
    assert bundle.manifest.operators["Conv"] == 2

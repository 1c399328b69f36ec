"""Adapters inside a layer against their formulas, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters.methods.modeling import Activation_Function_Class
from tests.conftest import tiny_coda
from torch import Tensor, nn

from coda_models import CodaConfig
from coda_models.layers.bottleneck import Bottleneck, Bottlenecks, activation_of, copy_scaled
from coda_models.layers.layer import PostNormBlock
from coda_models.learned_parts import ACTIVATIONS, BottleneckForm

WIDTH, NARROW = 8, 3


def bottleneck(**form: Any) -> Bottleneck:
    one = Bottleneck(WIDTH, BottleneckForm(**{"width": NARROW, "activation": "tanh", **form}))
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    return one.double()


def plain(one: Bottleneck, x: Tensor) -> Tensor:
    return one.up(one.activation(one.down(x)))


@pytest.fixture
def given() -> tuple[Tensor, Tensor, nn.LayerNorm]:
    torch.manual_seed(0)
    norm = nn.LayerNorm(WIDTH).double()
    nn.init.normal_(norm.weight)
    return torch.randn(2, 5, WIDTH).double(), torch.randn(2, 5, WIDTH).double(), norm


Formula = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, nn.LayerNorm], Tensor]
FORMULAS: dict[str, tuple[dict[str, Any], Formula]] = {
    "Houlsby": ({}, lambda f, h, x, norm: norm(f(h) + h + x)),
    "Pfeiffer": ({"joined": True}, lambda f, h, x, norm: norm(f(norm(h + x)) + h + x)),
    "parallel": ({"parallel": True}, lambda f, h, x, norm: norm(f(x) + h + x)),
    "added": ({"joined": True, "residual": "added"}, lambda f, h, x, norm: norm(f(norm(h + x)) + h + 2 * x)),
    "normed": ({"joined": True, "residual": "normed"}, lambda f, h, x, norm: norm(f(norm(h + x)) + norm(h + x) + x)),
    "open": ({"closes": False}, lambda f, h, x, norm: f(h) + h),
}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_placements(name: str, given: tuple[Tensor, Tensor, nn.LayerNorm]):
    form, formula = FORMULAS[name]
    one = bottleneck(**form)
    torch.testing.assert_close(Bottlenecks([one])(*given), formula(lambda x: plain(one, x), *given))


def test_several_behind_each_other(given: tuple[Tensor, Tensor, nn.LayerNorm]):
    h, x, norm = given
    first, second = bottleneck(), bottleneck(joined=True)
    between = plain(first, h) + h
    wanted = norm(plain(second, norm(between + x)) + between + x)
    both = Bottlenecks([first, second])
    torch.testing.assert_close(both(h, x, norm), wanted)
    assert both.width == 2 * NARROW


@pytest.mark.parametrize("residual_first", [True, False])
def test_norms_of_its_own(residual_first: bool, given: tuple[Tensor, Tensor, nn.LayerNorm]):
    h, x, norm = given
    one = bottleneck(residual_first=residual_first, norm_before=True, norm_after=True)
    before, after = one.norm_before, one.norm_after
    assert before is not None
    assert after is not None
    up = plain(one, before(h))
    wanted = after(up + h) if residual_first else after(up) + h
    torch.testing.assert_close(Bottlenecks([one])(h, x, norm), norm(wanted + x))


def test_relu_is_the_operator_of_coda(given: tuple[Tensor, Tensor, nn.LayerNorm]):
    one = bottleneck(activation="relu")
    torch.testing.assert_close(one(given[0], None), plain(one, given[0]))


@pytest.mark.parametrize("by", [2.5, torch.tensor([3.0]), torch.arange(WIDTH) * 0.5])
def test_scales_are_folded_into_weights(by: Any):
    linear, own, x = nn.Linear(NARROW, WIDTH), nn.Linear(NARROW, WIDTH), torch.randn(4, NARROW)
    copy_scaled(linear, own, by)
    torch.testing.assert_close(own(x), linear(x) * by)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_adapters_librarys(name: str):
    theirs, x = Activation_Function_Class(name), torch.linspace(-3, 3, 50)
    assert torch.equal(activation_of(name)(x), theirs(x))


@pytest.mark.parametrize("parallel", [True, False])
def test_what_is_built_adds_nothing_at_first(parallel: bool, given: tuple[Tensor, Tensor, nn.LayerNorm]):
    h, x, norm = given
    one = Bottleneck(WIDTH, BottleneckForm(width=NARROW, parallel=parallel)).double()
    torch.testing.assert_close(Bottlenecks([one])(h, x, norm), norm(h + x))


def test_layers_count_what_is_inside_them():
    layer = next(iter(tiny_coda("bert", CodaConfig(reduction=1)).coda_layers()))
    assert isinstance(layer.block, PostNormBlock)
    assert layer.block.light_width == 0
    layer.block.after_attention = Bottlenecks([bottleneck()])
    layer.block.after_feed_forward = Bottlenecks([bottleneck(), bottleneck()])
    assert layer.block.light_width == 3 * NARROW
    assert next(iter(tiny_coda("roberta-prelayernorm").coda_layers())).block.light_width == 0

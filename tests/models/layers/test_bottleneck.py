"""Adapters inside a layer against their formulas, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import tiny_coda
from torch import Tensor, nn

from coda_models import CodaConfig
from coda_models.layers.bottleneck import Bottleneck, Bottlenecks, Placement, scaled
from coda_models.layers.layer import PostNormBlock

WIDTH, NARROW = 8, 3


def bottleneck(placement: Placement, activation: Any = None, **norms: nn.LayerNorm) -> Bottleneck:
    down, up = nn.Linear(WIDTH, NARROW), nn.Linear(NARROW, WIDTH)
    return Bottleneck(down, activation or nn.Tanh(), up, placement, **norms).double()


def plain(one: Bottleneck, x: Tensor) -> Tensor:
    return one.up(one.activation(one.down(x)))


@pytest.fixture
def given() -> tuple[Tensor, Tensor, nn.LayerNorm]:
    torch.manual_seed(0)
    norm = nn.LayerNorm(WIDTH).double()
    nn.init.normal_(norm.weight)
    return torch.randn(2, 5, WIDTH).double(), torch.randn(2, 5, WIDTH).double(), norm


Formula = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, nn.LayerNorm], Tensor]
FORMULAS: dict[str, tuple[Placement, Formula]] = {
    "Houlsby": (Placement(), lambda f, h, x, norm: norm(f(h) + h + x)),
    "Pfeiffer": (Placement(joined=True), lambda f, h, x, norm: norm(f(norm(h + x)) + h + x)),
    "parallel": (Placement(parallel=True), lambda f, h, x, norm: norm(f(x) + h + x)),
    "added": (Placement(joined=True, residual="added"), lambda f, h, x, norm: norm(f(norm(h + x)) + h + 2 * x)),
    "normed": (Placement(joined=True, residual="normed"), lambda f, h, x, norm: norm(f(norm(h + x)) + norm(h + x) + x)),
    "open": (Placement(closes=False), lambda f, h, x, norm: f(h) + h),
}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_placements(name: str, given: tuple[Tensor, Tensor, nn.LayerNorm]):
    placement, formula = FORMULAS[name]
    one = bottleneck(placement)
    torch.testing.assert_close(Bottlenecks([one])(*given), formula(lambda x: plain(one, x), *given))


def test_several_behind_each_other(given: tuple[Tensor, Tensor, nn.LayerNorm]):
    h, x, norm = given
    first, second = bottleneck(Placement()), bottleneck(Placement(joined=True))
    between = plain(first, h) + h
    wanted = norm(plain(second, norm(between + x)) + between + x)
    both = Bottlenecks([first, second])
    torch.testing.assert_close(both(h, x, norm), wanted)
    assert both.width == 2 * NARROW


@pytest.mark.parametrize("residual_first", [True, False])
def test_norms_of_its_own(residual_first: bool, given: tuple[Tensor, Tensor, nn.LayerNorm]):
    h, x, norm = given
    before, after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
    nn.init.normal_(before.weight)
    nn.init.normal_(after.weight)
    one = bottleneck(Placement(residual_first=residual_first), norm_before=before, norm_after=after)
    up = plain(one, before(h))
    wanted = after(up + h) if residual_first else after(up) + h
    torch.testing.assert_close(Bottlenecks([one])(h, x, norm), norm(wanted + x))


def test_relu_is_the_operator_of_coda(given: tuple[Tensor, Tensor, nn.LayerNorm]):
    one = bottleneck(Placement(), nn.ReLU())
    torch.testing.assert_close(one(given[0], None), plain(one, given[0]))


@pytest.mark.parametrize("by", [2.5, torch.tensor([3.0]), torch.arange(WIDTH) * 0.5])
def test_scales_are_folded_into_weights(by: Any):
    linear, x = nn.Linear(NARROW, WIDTH), torch.randn(4, NARROW)
    torch.testing.assert_close(scaled(linear, by)(x), linear(x) * by)


def test_a_residual_that_does_not_exist():
    with pytest.raises(ValueError, match="residual 'nowhere' is unknown: use one of before, added, normed"):
        Placement(residual="nowhere")


def test_layers_count_what_is_inside_them():
    layer = next(iter(tiny_coda("bert", CodaConfig(reduction=1)).coda_layers()))
    assert isinstance(layer.block, PostNormBlock)
    assert layer.block.light_width == 0
    layer.block.after_attention = Bottlenecks([bottleneck(Placement())])
    layer.block.after_feed_forward = Bottlenecks([bottleneck(Placement()), bottleneck(Placement())])
    assert layer.block.light_width == 3 * NARROW
    assert next(iter(tiny_coda("roberta-prelayernorm").coda_layers())).block.light_width == 0

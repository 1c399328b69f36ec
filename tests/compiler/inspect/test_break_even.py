"""The estimate for GPUs: laws of its arithmetic, what our stand-in counts, and how near it is to figures made by hand."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.commands import Call
from tests.conftest import tiny_coda
from tests.targets.test_manifest import edit_variant

from coda_compile.inspect.break_even import LAUNCH, Kernel, break_even, kernels_of, seconds, speed_up
from coda_compile.inspect.cards import CARDS, Card
from coda_targets import Bundle
from coda_targets.manifest import LayerInfo, Manifest

H100, ORIN = CARDS[0], CARDS[-1]
DEMO = ("8", "1", "2", "8", "8", "8")
EIGHT = ("8",) * 6
card = st.sampled_from(CARDS)
batch, tokens = st.integers(1, 64), st.integers(1, 512)
FORMS: list[dict[str, Any]] = [
    {},
    {"attention": "k_to_all"},
    {"stand_in": 64},
    {"attention": "k_to_all", "stand_in": 64, "thin": 64},
]
form = st.sampled_from(FORMS)


@cache
def _signature():
    return replace(tiny_coda("bert").signature, max_length=512)


def encoder(
    *reductions: str, width: int = 384, attention: str = "k_to_k", stand_in: int = 0, thin: int = 0
) -> Manifest:
    """Of a MiniLM-L6, or of a BERT with other layers."""
    layers = tuple(LayerInfo(r, attention, 64, 512, stand_in, thin) for r in reductions)
    blank = dict.fromkeys(("task", "architecture", "model_sha256"), "")
    return Manifest(
        **blank,
        versions={},
        variants=(),
        signature=_signature(),
        outputs=(),
        width=width,
        feed_forward=4 * width,
        labels=(),
        layers=layers,
        coda_config={},
    )


def took(manifest: Manifest, card: Card, batch: int, tokens: int, *, dense: bool = False) -> float:
    return seconds(kernels_of(manifest, batch, tokens, half=True, dense=dense), card, half=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(card, batch, tokens, form, st.integers(2, 64), st.integers(2, 64))
def test_a_larger_r_is_never_slower(card: Card, batch: int, tokens: int, form: dict[str, Any], r: int, other: int):
    less, more = (encoder(str(x), **form) for x in sorted((r, other)))
    assert took(more, card, batch, tokens) <= took(less, card, batch, tokens) * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(card, batch, tokens, st.sampled_from(["1", "2", "8"]), st.booleans())
def test_more_work_is_never_faster(card: Card, batch: int, tokens: int, r: str, dense: bool):
    model = encoder(r)
    time = took(model, card, batch, tokens, dense=dense)
    assert time <= took(model, card, batch + 1, tokens, dense=dense) * (1 + 1e-9)
    assert time <= took(model, card, batch, tokens + 8, dense=dense) * (1 + 1e-9)
    assert time <= took(encoder(r, r), card, batch, tokens, dense=dense)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(card, batch, tokens, form)
def test_at_r_1_nothing_is_gained(card: Card, batch: int, tokens: int, form: dict[str, Any]):
    assert speed_up(encoder("1", "1", **form), card, batch, tokens, half=True) == 1
    dense = took(encoder("8", "4", **form), card, batch, tokens, dense=True)
    assert dense == took(encoder("1", "1"), card, batch, tokens)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(card, st.integers(8, 64), st.integers(4, 16))
def test_thin_keys_cost_less_where_there_is_much_to_multiply(card: Card, batch: int, r: int):
    exact, thin = (encoder(str(r), width=768, attention="k_to_all", stand_in=64, thin=rank) for rank in (0, 64))
    assert speed_up(thin, card, batch, 512, half=False) > speed_up(exact, card, batch, 512, half=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 8))
def test_a_short_text_is_bound_by_launches(tokens: int):
    model = encoder("1")
    launches = kernels_of(model, 1, tokens, half=True)
    assert took(model, H100, 1, tokens) == pytest.approx(LAUNCH * len(launches))
    assert all(speed_up(encoder("8"), one, 1, tokens, half=True) < 1 for one in CARDS)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("layers", [EIGHT, DEMO])
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_beyond_the_break_even_routing_wins(card: Card, layers: tuple[str, ...], half: bool):
    model = encoder(*layers)
    tokens = break_even(model, card, half=half)
    assert tokens is not None
    for factor in (1, 2, 8):
        length = min(tokens * factor, 512)
        assert speed_up(model, card, -(-tokens * factor // length), length, half=half) > 1


def test_without_routing_there_is_no_break_even():
    assert break_even(encoder("1"), H100, half=True) is None


def test_a_kernel_takes_what_binds_it():
    peak, bandwidth = 0.4 * H100.half, 0.9 * H100.bandwidth
    assert seconds([Kernel(0, 0)], H100, half=True) == LAUNCH
    assert seconds([Kernel(peak, 1.0)], H100, half=True) == pytest.approx(1)
    assert seconds([Kernel(1.0, bandwidth)], H100, half=True) == pytest.approx(1)
    assert seconds([Kernel(0, 0, 3.0), Kernel(0, 0)], H100, half=True) == pytest.approx(3 + LAUNCH)
    assert seconds([Kernel(peak, 1.0)], H100, half=False) > 10  # no tensor cores


def test_launches_are_those_that_the_stand_in_cuda_counts():
    """The demo in fp16 at 1 x 512, by onnxruntime 1.31.1: 124 dense and 153 routed."""
    assert len(kernels_of(encoder(*DEMO), 1, 512, half=True, dense=True)) == 124
    assert len(kernels_of(encoder(*DEMO), 1, 512, half=True)) == 153


@pytest.mark.parametrize(
    ("form", "launches"), [({"stand_in": 64}, 95), ({"attention": "k_to_all", "stand_in": 64, "thin": 64}, 140)]
)
def test_stand_ins_launch_as_much_more_as_the_stand_in_cuda_counts(form: dict[str, Any], launches: int):
    """Three layers of BERT-base in fp16 at 1 x 512, where 80 are launched without."""
    plain, own = (kernels_of(encoder(*"444", width=768, **one), 1, 512, half=True) for one in ({}, form))
    assert len(own) - len(plain) == launches - 80


# Times over the dense adapter, from an estimate by hand of before there was a graph: nine kernels a layer, four more a
# routed one, and 400 TFLOP and 3 TB a second on an H100.
@pytest.mark.parametrize(
    ("model", "card", "batch", "by_hand", "near"),
    [
        (encoder(*DEMO), H100, 1, 0.57, 0.25),
        (encoder(*DEMO), H100, 8, 1.3, 0.1),
        (encoder(*DEMO), H100, 32, 2.2, 0.1),
        (encoder(*EIGHT), H100, 1, 0.52, 0.3),
        (encoder(*EIGHT), H100, 8, 1.5, 0.1),
        (encoder(*EIGHT), H100, 32, 3.5, 0.15),
        (encoder(*EIGHT, *EIGHT, width=768), H100, 1, 0.8, 0.1),
        (encoder(*EIGHT, *EIGHT, width=768), H100, 8, 3.6, 0.15),
        (encoder(*EIGHT, *EIGHT, width=768), H100, 32, 5.2, 0.15),
        (encoder(*DEMO), ORIN, 8, 2.4, 0.1),
        (encoder(*EIGHT), ORIN, 8, 4.2, 0.15),
    ],
)
def test_ratios_are_near_those_made_by_hand(model: Manifest, card: Card, batch: int, by_hand: float, near: float):
    assert speed_up(model, card, batch, 512, half=True) == pytest.approx(by_hand, rel=near)


@pytest.mark.parametrize(("batch", "milliseconds"), [(1, 0.12), (8, 0.34), (32, 1.32)])
def test_with_kernels_as_few_as_by_hand_times_are_those(batch: int, milliseconds: float):
    """The dense adapter on an H100: products and attention that do all else on their way, two norms, and five more."""
    n, d, f, b = batch * 512, 384, 1536, 64

    def product(rows: int, inputs: int, outputs: int) -> Kernel:
        return Kernel(2 * rows * inputs * outputs, 2 * (rows * (inputs + outputs) + inputs * outputs))

    attention = Kernel(4 * n * 512 * d, 2 * 4 * n * d)
    norm = Kernel(0, 2 * 3 * n * d)
    layer = [product(n, d, 3 * d), attention, product(n, d, d), norm, product(n, d, f), product(n, f, d), norm]
    layer += [product(n, d, b), product(n, b, d)]
    found = seconds([*layer * 6, *[Kernel(0, 2 * 2 * n * d)] * 5], H100, half=True)
    assert found * 1e3 == pytest.approx(milliseconds, rel=0.15)


@pytest.fixture
def routed(copied: Bundle):
    edit_variant(copied, target="cuda")
    return copied


def test_inspect_estimates_for_well_known_cards(call: Call, routed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coda_compile.cli.gpu_estimate.card_here", lambda: None)
    out = call("inspect", str(routed)).worked()
    assert "estimated on GPUs in fp32" in out
    assert "an estimate by arithmetic, not measured" in out
    for card in CARDS:
        assert card.name in out


def test_inspect_estimates_for_the_card_at_hand(call: Call, routed, monkeypatch: pytest.MonkeyPatch):
    here = replace(H100, name="NVIDIA Tiny", multiprocessors=1)
    monkeypatch.setattr("coda_compile.cli.gpu_estimate.card_here", lambda: here)
    out = call("inspect", str(routed)).worked()
    assert "NVIDIA Tiny" in out
    assert "NVIDIA H100" not in out
    monkeypatch.setattr("coda_compile.cli.gpu_estimate.card_here", lambda: replace(here, clock=0.0))
    assert "NVIDIA H100" in call("inspect", str(routed)).worked()


def test_inspect_estimates_nothing_for_cpus(call: Call, compiled: Bundle):
    assert "estimate" not in call("inspect", str(compiled.folder)).worked()


def test_a_target_of_a_newer_release_is_passed_over(call: Call, copied):
    edit_variant(copied, target="abacus")
    assert "estimate" not in call("inspect", str(copied)).worked()

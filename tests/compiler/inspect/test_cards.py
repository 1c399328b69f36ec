"""Cards: what data sheets say of them, and what a driver does."""

import ctypes

import pytest

from coda_compile.inspect import cards
from coda_compile.inspect.cards import CARDS, Card, card_here, described
from coda_targets.runtimes import nvidia

# Dense float16 and float32, TFLOP a second, as NVIDIA's data sheets and white papers state them.
STATED = {
    "NVIDIA H100 SXM": (989, 67),
    "NVIDIA A100 80GB SXM": (312, 19.5),
    "NVIDIA GeForce RTX 4090": (330, 82.6),
    "NVIDIA L4": (121, 30.3),
    "NVIDIA T4": (65, 8.1),
}


@pytest.mark.parametrize("name", STATED)
def test_rates_are_those_of_data_sheets(name: str):
    (card,) = (one for one in CARDS if one.name == name)
    half, single = STATED[name]
    assert card.half == pytest.approx(half * 1e12, rel=0.02)
    assert card.single == pytest.approx(single * 1e12, rel=0.09)  # H100's is stated at a higher clock


def test_newer_and_older_cards_have_rates_too():
    def half(*capability: int) -> float:
        return Card("", (capability[0], capability[1]), 1, 1.0, 1.0).half

    assert half(12, 1) == half(12, 0)
    assert half(8, 9) == half(8, 6)
    assert half(6, 1) == half(7, 5)


class Driver:
    """NVIDIA's driver with one H200, as far as it is asked."""

    def __init__(self, *, initialised: int = 0, devices: int = 1, hidden: int = 0) -> None:
        self.initialised, self.devices = initialised, devices
        told = {16: 132, 13: 1_980_000, 36: 3_201_000, 37: 6144, 75: 9, 76: 0}
        self.attributes = {number: value for number, value in told.items() if number != hidden}

    def cuInit(self, flags: int) -> int:  # noqa: N802  as the driver spells it
        return self.initialised

    def cuDeviceGet(self, device: object, ordinal: int) -> int:  # noqa: N802
        return 0 if ordinal < self.devices else 101

    def cuDeviceGetName(self, name: ctypes.Array, size: int, device: object) -> int:  # noqa: N802
        name.value = b"NVIDIA H200"
        return 0

    def cuDeviceGetAttribute(self, value: object, number: int, device: object) -> int:  # noqa: N802
        value._obj.value = self.attributes.get(number, 0)
        return 0


def test_a_driver_is_asked_for_its_card():
    card = described(Driver())
    assert (card.name, card.capability, card.multiprocessors) == ("NVIDIA H200", (9, 0), 132)
    assert card.bandwidth == pytest.approx(4.9e12, rel=0.01)
    assert card.clock == pytest.approx(1.98e9)
    assert card.complete


@pytest.mark.parametrize("hidden", [13, 36, 37])
def test_what_a_driver_hides_makes_a_card_incomplete(hidden: int):
    assert not described(Driver(hidden=hidden)).complete


@pytest.mark.parametrize("driver", [Driver(initialised=100), Driver(devices=0)])
def test_a_driver_without_a_device_has_no_card(driver: Driver):
    assert described(driver) is None


@pytest.mark.parametrize("fails", [OSError("no such library"), AttributeError("cuDeviceGet")])
def test_without_a_driver_there_is_no_card(monkeypatch: pytest.MonkeyPatch, fails: Exception):
    def load(name: str) -> None:
        raise fails

    monkeypatch.setattr(cards.ctypes, "CDLL", load)
    nvidia.driver.cache_clear()
    assert card_here() is None
    nvidia.driver.cache_clear()

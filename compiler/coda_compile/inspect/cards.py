"""NVIDIA GPUs: what one computes and moves in a second at most, by its data sheet or by the driver of this machine."""

import ctypes
from dataclasses import dataclass

from coda_targets.runtimes import nvidia

# Floating-point operations of one multiprocessor in a clock, by compute capability: dense float16 products on tensor
# cores, and float32 ones without them. By NVIDIA's architecture white papers, Turing to Blackwell. GeForce cards reach
# half of the first where sums are float32, as they are in onnxruntime.
_RATES: dict[tuple[int, int], tuple[int, int]] = {
    (7, 5): (1024, 128),
    (8, 0): (2048, 128),
    (8, 6): (1024, 256),
    (8, 7): (2048, 256),
    (8, 9): (1024, 256),
    (9, 0): (4096, 256),
    (10, 0): (8192, 256),
    (12, 0): (1024, 256),
}
# Of cuDeviceGetAttribute, in the order of ``_attributes``: CU_DEVICE_ATTRIBUTE_… of cuda.h.
_CLOCK_RATE, _MULTIPROCESSORS, _MEMORY_CLOCK_RATE, _MEMORY_BUS_WIDTH, _MAJOR, _MINOR = 13, 16, 36, 37, 75, 76


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: as its maker calls it.
        capability: compute capability, major and minor.
        multiprocessors: of the card.
        clock: of them at most, Hz.
        bandwidth: of its memory, bytes a second.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    bandwidth: float

    @property
    def half(self) -> float:
        """Floating-point operations a second in dense float16 products, at most."""
        return self._rates[0] * self.multiprocessors * self.clock

    @property
    def single(self) -> float:
        """The same in float32, without tensor cores."""
        return self._rates[1] * self.multiprocessors * self.clock

    @property
    def complete(self) -> bool:
        """Whether all is known that speed depends on: some drivers hide clocks or memory."""
        return min(self.multiprocessors, self.clock, self.bandwidth) > 0

    @property
    def _rates(self) -> tuple[int, int]:
        """Of the newest generation that is known and no newer than the card's; of the oldest for older ones."""
        return _RATES[max((one for one in _RATES if one <= self.capability), default=min(_RATES))]


# Multiprocessors, boost clock and memory bandwidth: NVIDIA's data sheets of H100 SXM, A100 80GB SXM, L4 and T4, the Ada
# white paper, the specifications of GeForce RTX 40 laptops, and the data sheet of Jetson Orin Nano in its Super mode.
CARDS = (
    Card("NVIDIA H100 SXM", (9, 0), 132, 1.83e9, 3.35e12),
    Card("NVIDIA A100 80GB SXM", (8, 0), 108, 1.41e9, 2.039e12),
    Card("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52e9, 1.008e12),
    Card("NVIDIA L4", (8, 9), 58, 2.04e9, 300e9),
    Card("NVIDIA T4", (7, 5), 40, 1.59e9, 320e9),
    Card("NVIDIA GeForce RTX 4060 Laptop", (8, 9), 24, 2.37e9, 256e9),
    Card("NVIDIA Jetson Orin Nano Super 8GB", (8, 7), 8, 1.02e9, 102e9),
)


def card_here() -> Card | None:
    """The first GPU of this machine, as its driver describes it; ``None`` where there is none, or no driver."""
    try:
        driver = nvidia.driver()
        return None if driver is None else described(driver)
    except AttributeError:  # it lacks a function
        return None


def described(driver: ctypes.CDLL) -> Card | None:
    """The first GPU that NVIDIA's driver describes; ``None`` without one."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device)
    )
    if failed:
        return None

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        return 0 if driver.cuDeviceGetAttribute(ctypes.byref(value), number, device) else value.value

    data_rate = 2 * attribute(_MEMORY_CLOCK_RATE) * 1e3  # the driver counts in kHz, and memory moves two bits a clock
    return Card(
        name.value.decode("utf-8", "replace"),
        (attribute(_MAJOR), attribute(_MINOR)),
        attribute(_MULTIPROCESSORS),
        attribute(_CLOCK_RATE) * 1e3,
        data_rate * attribute(_MEMORY_BUS_WIDTH) / 8,
    )

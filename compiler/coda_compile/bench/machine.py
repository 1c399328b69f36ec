"""The machine's fingerprint, stored with every result, so that results of two machines are not compared by mistake."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from coda_compile.errors import CodaError
from coda_compile.inspect.cards import card_here
from coda_ops import cpu, native
from coda_ops.distributions import installed_version

# What decides which kernels a runtime takes.
_X86 = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16")
_AMX = ("amx_tile", "amx_int8", "amx_bf16")
_ARM = ("neon", "asimd", "asimddp", "i8mm", "bf16", "sve")
_PACKAGES = (
    "coda-compile",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "openvino",
    "nncf",
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Machine:
    """Where something was measured.

    Attributes:
        cpu: the model as the processor names itself.
        cores: those this process may use.
        instruction_sets: of those that runtimes choose kernels by.
        memory_bytes: installed.
        governor: of the clock frequency, ``None`` where it cannot be read.
        system: operating system and architecture.
        python, versions: of the interpreter and of the libraries that were installed.
        kernels: of the CoDA operators, ``native`` or ``portable``.
        gpu: the first NVIDIA card, as its driver names it; ``None`` without one.
    """

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    governor: str | None
    system: str
    python: str
    versions: dict[str, str]
    kernels: str
    gpu: str | None = None

    def differences(self, other: "Machine") -> list[str]:
        """What makes figures of two machines incomparable, one phrase each; empty for the same kind of machine."""
        pairs: dict[str, tuple[Any, Any]] = {
            "CPU": (self.cpu, other.cpu),
            "cores": (self.cores, other.cores),
            "instruction sets": (" ".join(self.instruction_sets), " ".join(other.instruction_sets)),
            "system": (self.system, other.system),
            "GPU": (self.gpu, other.gpu),
            "onnxruntime": (_onnxruntime(self), _onnxruntime(other)),
            "kernels of the CoDA operators": (self.kernels, other.kernels),
        }
        return [f"{what}: {a} here, {b} there" for what, (a, b) in pairs.items() if a != b]


@cache
def this_machine() -> Machine:
    """The fingerprint of the machine that runs this."""
    card = card_here()
    return Machine(
        cpu=cpu.model_name(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name in (*_X86, *_AMX, *_ARM) if name in cpu.features()),
        memory_bytes=int(psutil.virtual_memory().total),
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: found.split("+")[0] for name in _PACKAGES if (found := installed_version(name))},
        kernels="portable" if native.library() is None else "native",
        gpu=None if card is None else card.name,
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: int) -> int:
    """Threads of every contender: as asked, or all cores for 0.

    Raises:
        CodaError: more than there are cores; contenders would then wait for each other's threads.
    """
    cores = usable_cores()
    if threads > cores:
        raise CodaError(f"{threads} threads on {cores} cores measure the scheduler: give at most {cores}")
    return threads or cores


def _onnxruntime(machine: Machine) -> str | None:
    """Its version, of whichever package brings it."""
    return machine.versions.get("onnxruntime", machine.versions.get("onnxruntime-gpu"))

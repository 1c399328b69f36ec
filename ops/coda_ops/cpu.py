"""What this processor can do, and how much of that ``CODA_ISA`` lets the process use."""

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from coda_ops.errors import CodaError

SWITCH = "CODA_ISA"  # environment: the most that this process uses, one of ISAS
ISAS = ("baseline", "avx2", "avx-vnni", "avx512", "avx512-vnni", "amx-int8")  # as in native/src/simd.h
_CPUINFO = Path("/proc/cpuinfo")
# What other systems call the features, by Linux's names.
_MACOS = {
    "hw.optional.sse4_2": "sse4_2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512vl": "avx512vl",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
_WINDOWS = {19: "asimd", 38: "sse4_2", 39: "avx", 40: "avx2", 41: "avx512f", 43: "asimddp", 46: "sve"}


class CpuError(CodaError):
    """An instruction set that nobody knows."""


def is_x86() -> bool:
    """Whether this is a 64-bit x86 processor, under any system's name for it."""
    return platform.machine().lower() in ("x86_64", "amd64")


def allowed(isa: str) -> bool:
    """Whether the environment lets this process use one of ``ISAS``; whether the processor has it is another question.

    Raises:
        CpuError: it names something unknown.
    """
    most = os.environ.get(SWITCH, ISAS[-1])
    if most not in ISAS:
        raise CpuError(f"{SWITCH}={most} is unknown: use {' '.join(ISAS)}")
    return ISAS.index(isa) <= ISAS.index(most)


@cache
def features() -> frozenset[str]:
    """Instruction sets by the names that Linux has for them, such as ``avx512_vnni`` and ``asimddp``.

    macOS and Windows publish only some of them, and no byte products of x86; elsewhere nothing is known.
    """
    if sys.platform == "darwin":
        return frozenset(_MACOS[name] for name, value in _sysctl("hw.optional") if value == "1" and name in _MACOS)
    if sys.platform == "win32":
        import ctypes

        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return frozenset(name for number, name in _WINDOWS.items() if present(number))
    return frozenset(word for key, value in _cpuinfo() if key in ("flags", "Features") for word in value.split())


@cache
def model_name() -> str:
    """The processor as it names itself; ``"unknown"`` where nobody says."""
    if sys.platform == "darwin":
        name = dict(_sysctl("machdep.cpu.brand_string")).get("machdep.cpu.brand_string", "")
    elif sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    else:
        said = dict(_cpuinfo())
        # Linux on ARM has numbers alone: who made it, and which core it is.
        name = said.get("model name") or " ".join(said[key] for key in ("CPU implementer", "CPU part") if key in said)
    return name or platform.processor() or "unknown"


def _cpuinfo() -> list[tuple[str, str]]:
    """Keys and values of Linux's list of processors."""
    try:
        lines = _CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _sysctl(name: str) -> list[tuple[str, str]]:
    """Keys and values below a name in macOS's table."""
    done = subprocess.run(["/usr/sbin/sysctl", name], capture_output=True, text=True, check=False)
    return [(key, value.strip()) for key, _, value in (line.partition(":") for line in done.stdout.splitlines())]

"""Whether this processor multiplies bytes exactly."""

import platform
from functools import cache
from pathlib import Path

from coda_ops import native

_CPUS = Path("/proc/cpuinfo")
_EXACT = {"avx512_vnni", "avx_vnni"}


def saturates() -> bool:
    """Whether sums of products of unsigned and signed bytes are cut off at 16 bits here, as on x86-64 without VNNI.

    onnxruntime then is asked for unsigned bytes on both sides, which are exact everywhere and slower. Where nobody
    says what the processor has, on other systems than Linux, that is what is asked for.

    Raises:
        KernelError: ``CODA_ISA`` names no instruction set.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (native.allowed("avx-vnni") and _has_vnni())


@cache
def _has_vnni() -> bool:
    return _CPUS.is_file() and not _EXACT.isdisjoint(_CPUS.read_text("utf-8").split())

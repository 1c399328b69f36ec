"""Whether this processor multiplies bytes exactly."""

import platform
from functools import cache
from pathlib import Path

_CPUS = Path("/proc/cpuinfo")
_EXACT = {"avx512_vnni", "avx_vnni"}


@cache
def saturates() -> bool:
    """Whether sums of products of unsigned and signed bytes are cut off at 16 bits here, as on x86-64 without VNNI.

    onnxruntime then is asked for unsigned bytes on both sides, which are exact everywhere and slower. Where nobody
    says what the processor has, on other systems than Linux, that is what is asked for.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not (_CPUS.is_file() and _EXACT & set(_CPUS.read_text("utf-8").split()))

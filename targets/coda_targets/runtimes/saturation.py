"""Whether this processor multiplies int8 exactly, or saturates at 16 bits."""

from coda_ops import cpu

_EXACT = {"avx512_vnni", "avx_vnni"}


def saturates() -> bool:
    """Whether sums of products of unsigned and signed bytes are cut off at 16 bits here, as on x86-64 without VNNI.

    onnxruntime then is asked for unsigned bytes on both sides, which are exact everywhere and slower. Where nobody
    says what the processor has, on other systems than Linux, that is what is asked for.

    Raises:
        CpuError: ``CODA_ISA`` names no instruction set.
    """
    return cpu.is_x86() and not (cpu.allowed("avx-vnni") and not _EXACT.isdisjoint(cpu.features()))

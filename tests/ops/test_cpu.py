"""What the processor can do, as each system says it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coda_ops import cpu
from coda_ops.cpu import CpuError

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: sse4_2 avx2 avx512_vnni
bugs\t\t: spectre_v2

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: sse4_2 avx2 avx512_vnni
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: asimd asimddp i8mm bf16 sve
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""
APPLE = {
    "hw.optional": "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\n",
    "machdep.cpu.brand_string": "machdep.cpu.brand_string: Apple M1 Pro\n",
}


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CODA_ISA", raising=False)
    cpu.features.cache_clear()
    cpu.model_name.cache_clear()
    yield
    cpu.features.cache_clear()
    cpu.model_name.cache_clear()


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (XEON, "Intel(R) Xeon(R) Processor", {"sse4_2", "avx2", "avx512_vnni"}),
        (GRAVITON, "0x41 0xd4f", {"asimd", "asimddp", "i8mm", "bf16", "sve"}),
        (None, "it", set()),
    ],
)
def test_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, name: str, features: set[str]):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu.sys, "platform", "linux")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.platform, "processor", lambda: "it")
    assert cpu.model_name() == name
    assert cpu.features() == features


def test_macos(monkeypatch: pytest.MonkeyPatch):
    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, APPLE[command[1]], "")

    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    monkeypatch.setattr(cpu.subprocess, "run", sysctl)
    assert cpu.model_name() == "Apple M1 Pro"
    assert cpu.features() == {"asimd", "asimddp"}


@pytest.mark.parametrize(("machine", "x86"), [("x86_64", True), ("AMD64", True), ("aarch64", False), ("arm64", False)])
def test_names_of_64_bit_x86(monkeypatch: pytest.MonkeyPatch, machine: str, x86: bool):
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    assert cpu.is_x86() is x86


def test_what_the_environment_allows(monkeypatch: pytest.MonkeyPatch):
    assert all(map(cpu.allowed, cpu.ISAS))
    monkeypatch.setenv("CODA_ISA", "avx-vnni")
    assert [isa for isa in cpu.ISAS if cpu.allowed(isa)] == ["baseline", "avx2", "avx-vnni"]
    monkeypatch.setenv("CODA_ISA", "avx3")
    with pytest.raises(CpuError, match=r"^CODA_ISA=avx3 is unknown: use baseline avx2 avx-vnni avx512 "):
        cpu.allowed("avx2")

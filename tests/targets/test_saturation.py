"""Who multiplies bytes exactly, and what onnxruntime is asked for elsewhere."""

from pathlib import Path

import onnxruntime as ort
import pytest
from tests.compiler.test_lower_static_products import texts
from tests.conftest import tiny_coda

from coda_compile import compile
from coda_models import CodaConfig
from coda_targets import bundle, get_target, saturation
from coda_targets.saturation import saturates


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    saturates.cache_clear()


@pytest.mark.parametrize(
    ("machine", "flags", "cut_off"),
    [
        ("x86_64", "flags : sse2 avx2 avx512f avx512_vnni amx_int8", False),
        ("x86_64", "flags : sse2 avx2 avx_vnni", False),
        ("x86_64", "flags : sse2 avx2 avx512f", True),
        ("AMD64", None, True),
        ("aarch64", "Features : asimd", False),
        ("arm64", None, False),
    ],
)
def test_x86_without_vnni_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, cut_off: bool
):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(saturation, "_CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(saturation.platform, "machine", lambda: machine)
    assert saturates() is cut_off
    saturates.cache_clear()


def test_there_the_same_file_is_verified_with_unsigned_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, name: str, value: str) -> None:
            asked.append((name, value))
            super().add_session_config_entry(name, value)

    monkeypatch.setattr(bundle.ort, "SessionOptions", Options)
    monkeypatch.setattr(bundle, "saturates", lambda: True)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    compile(model, get_target("cpu"), output=tmp_path / "b", precision="int8-static", calibration=texts(model))
    assert ("session.x64quantprecision", "1") in asked

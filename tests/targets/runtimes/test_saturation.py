"""Who multiplies bytes exactly, and what onnxruntime is asked for elsewhere."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from tests.compiler.passes.test_lower_static_linears import texts
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models import CodaConfig
from coda_ops import cpu
from coda_targets import Bundle
from coda_targets.runtimes.saturation import saturates


@pytest.mark.parametrize(
    ("machine", "features", "cut_off"),
    [
        ("x86_64", {"sse2", "avx2", "avx512f", "avx512_vnni", "amx_int8"}, False),
        ("x86_64", {"sse2", "avx2", "avx_vnni"}, False),
        ("x86_64", {"sse2", "avx2", "avx512f"}, True),
        ("AMD64", set(), True),
        ("aarch64", {"asimd"}, False),
        ("arm64", set(), False),
    ],
)
def test_x86_without_vnni_does(monkeypatch: pytest.MonkeyPatch, machine: str, features: set[str], cut_off: bool):
    monkeypatch.delenv("CODA_ISA", raising=False)
    monkeypatch.setattr(cpu, "features", lambda: features)
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    assert saturates() is cut_off


@pytest.mark.parametrize(("most", "cut_off"), [("baseline", True), ("avx2", True), ("avx512-vnni", False)])
def test_a_lesser_machine_is_made_of_a_better_one(monkeypatch: pytest.MonkeyPatch, most: str, cut_off: bool):
    monkeypatch.setattr(cpu, "features", lambda: {"avx512_vnni"})
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CODA_ISA", most)
    assert saturates() is cut_off


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("bert", CodaConfig(reduction=2)),
        ("mpnet", CodaConfig(reduction="7/2", attention="k_to_all", pooling="mean")),
        ("distilbert", CodaConfig(reduction=1)),
        ("roberta", CodaConfig(reduction=2, task="token-classification")),
    ],
)
def test_one_file_is_right_with_unsigned_bytes_and_where_the_processor_is_exact_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, config: CodaConfig, pack: bool
):
    asked: list[tuple[str, str]] = []
    optimized = tmp_path / "optimized.onnx"

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.optimized_model_filepath = str(optimized)

        def add_session_config_entry(self, name: str, value: str) -> None:
            asked.append((name, value))
            super().add_session_config_entry(name, value)

    monkeypatch.delenv("CODA_ISA", raising=False)
    ways = (True,) if saturates() else (True, False)  # a processor that cuts sums off is wrong the other way
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CODA_ISA", "avx2")
    model = tiny_coda(family, config)
    made = compile(
        model, CompileOptions(precision="int8-static", calibration=texts(model), pack=pack), output=tmp_path / "b"
    )
    monkeypatch.setattr("coda_targets.runtimes.session.ort.SessionOptions", Options)
    for unsigned in ways:
        monkeypatch.setattr("coda_targets.runtimes.session.saturates", lambda unsigned=unsigned: unsigned)
        asked.clear()
        verify_bundle(Bundle(made.folder))
        assert (("session.x64quantprecision", "1") in asked) is unsigned
        # Either way bytes are what is multiplied: no weight is widened before.
        counts = Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)
        operators = made.variant.operators
        assert counts["DequantizeLinear"] == 0
        assert counts["MatMulIntegerToFloat"] == operators["DequantizeLinear"] - operators["QuantizeLinear"]

"""A target is two files, one that says how it is compiled and one that says how it runs, and nothing else."""

import sys
from pathlib import Path

import pytest
from tests.compiler.commands import Call
from tests.conftest import tiny_coda

import coda_compile.backends
import coda_targets.runtimes
from coda_models import CodaConfig, save
from coda_targets import Bundle

RUNTIME = """
from coda_targets.runtimes import Runtime

RUNTIME = Runtime(name="abacus", providers=(("CPUExecutionProvider", {}),), install="buy one", graph_level="basic")
"""
BACKEND = """
import onnx_ir as ir
from coda_compile.backends import Backend
from coda_compile.backends.operators import check_operators
from coda_compile.passes import Pass
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.strip_export_metadata import StripExportMetadata
from coda_compile.passes.upstream import LiftConstants
from coda_targets.runtimes.abacus import RUNTIME


class AbacusBackend(Backend):
    def passes(self, *, pack: bool = False, half: bool = False) -> list[Pass]:
        return [LiftConstants(), StripExportMetadata(), AttachFunctions()]

    def check(self, model: ir.Model) -> None:
        check_operators(model, self.name)


BACKEND = AbacusBackend(RUNTIME, opset=20, precisions=("fp32",))
"""


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a new target, as if they lay in the packages' folders."""
    for package, text in ((coda_targets.runtimes, RUNTIME), (coda_compile.backends, BACKEND)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "abacus.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        name = f"{package.__name__}.abacus"
        monkeypatch.setitem(sys.modules, name, None)  # so that what is imported is forgotten afterwards
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(package, "abacus", None, raising=False)


@pytest.mark.usefixtures("two_files")
def test_two_files_are_a_target(call: Call, tmp_path: Path):
    save(tiny_coda("bert", CodaConfig(reduction=2)), tmp_path / "model.pt")
    assert "abacus, cpu, cuda" in call("compile", "--help").worked()
    assert "model-abacus: " in call(str(tmp_path / "model.pt"), "--target", "abacus").worked()
    bundle = Bundle("model-abacus")
    assert (bundle.variant.target, bundle.variant.session.graph_level) == ("abacus", "basic")
    assert bundle.runtime.install == "buy one"
    assert call("verify", "model-abacus").worked()
    refused = call(str(tmp_path / "model.pt"), "--target", "abacus", "--precision", "int8").refused()
    assert refused == "target 'abacus' has no precision 'int8': use one of fp32"
    assert call(str(tmp_path / "model.pt"), "--target", "abacus", "--pack").refused().endswith("leave out --pack")


def test_and_without_them_it_is_none(call: Call):
    assert "target 'abacus' is unknown" in call("model.pt", "--target", "abacus").refused()

"""An exported graph without any pass run on it, exported once; every test gets its own copy. And the command line."""

import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tests.compiler.commands import Call, Ended
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.cli.main import main
from coda_models import CodaConfig


@pytest.fixture(scope="session")
def _routed() -> onnx.ModelProto:
    return ir.to_proto(export(tiny_coda("bert", CodaConfig(reduction=2)), opset=20))


@pytest.fixture
def raw(_routed: onnx.ModelProto) -> ir.Model:
    """A tiny BERT at r = 2 as the exporter left it."""
    return ir.from_proto(_routed)


@pytest.fixture(scope="session")
def plain() -> Callable[[], ir.Model]:
    """Makes a small graph that has nothing of CoDA in it."""

    def make() -> ir.Model:
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> agraph (float[N] x) => (float[N] y) { y = Relu(x) }'
        )
        return ir.from_proto(model)

    return make


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """``main`` itself, in this process and in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["coda-compile", *arguments])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            signal.signal(signal.SIGTERM, handler)
        return Ended(status, *capfd.readouterr())

    return run

"""An exported graph without any pass run on it, exported once; every test gets its own copy."""

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from tests.conftest import tiny_coda

from coda_compile.export import export
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

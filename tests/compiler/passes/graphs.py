"""What tests of passes share: running a graph, comparing it with and without passes, and asking why it was left alone."""

from collections.abc import Sequence

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
from tests.exporting import export

from coda_compile.passes import Pass, PassReport, run_passes
from coda_compile.passes.attach_functions import AttachFunctions
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.fusion import Fusion
from coda_compile.passes.outcome import Declined, NotHere
from coda_compile.passes.upstream import RemoveUnused
from coda_compile.verify.cases import make_case
from coda_models import CodaModel

BEFORE = (FoldConstants(), EliminateIdentities())


def parsed(text: str, *, opset: int = 20, shapes: bool = False) -> ir.Model:
    """A model from ONNX's text form, without its first line; with the shapes of every value where they are asked for."""
    domains = [f'"" : {opset}', *(f'"{domain}" : 1' for domain in ("ai.coda", "com.microsoft") if domain in text)]
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{', '.join(domains)}]> {text}")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto) if shapes else proto)
    model.graph.name = "g"
    return model


def serialized(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def inputs_of(model: CodaModel) -> dict[str, np.ndarray]:
    """Three ragged sequences of up to eleven tokens."""
    return dict(make_case(model.signature, 3, 11, ragged=True, seed=0).inputs)


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def compare(
    model: CodaModel,
    one: Pass,
    *,
    before: Sequence[Pass] = BEFORE,
    after: Sequence[Pass] = (RemoveUnused(), AttachFunctions()),
    feed: dict[str, np.ndarray] | None = None,
    atol: float = 1e-6,
) -> tuple[ir.Model, PassReport]:
    """Hold what a model computes after a pass against what it computes without; returns it, and what the pass did."""
    exported = ir.to_proto(export(model, opset=20))
    results = []
    for given in ((), (one,)):
        compiled = ir.from_proto(exported)
        reports = run_passes(compiled, (*before, *given, *after))
        results.append(outputs(compiled, inputs_of(model) if feed is None else feed))
    for plain, changed in zip(*results, strict=True):
        np.testing.assert_allclose(changed, plain, rtol=0, atol=atol)
    return compiled, reports[len(before)]


def why_declined(fusion: Fusion, model: ir.Model) -> Declined:
    """Run a fusion that must change nothing and give one reason."""
    before = serialized(model)
    result = fusion(model)
    assert (result.modified, result.fused) == (False, 0)
    assert serialized(model) == before
    (declined,) = (outcome for outcome in result.outcomes if isinstance(outcome, Declined))
    assert result.declined == {declined.reason: 1}
    return declined


def assert_not_here(fusion: Fusion, model: ir.Model) -> None:
    """Run a fusion that must find nothing of its own."""
    before = serialized(model)
    result = fusion(model)
    assert not result.modified
    assert all(outcome == NotHere() for outcome in result.outcomes)
    assert serialized(model) == before

"""Running sums of integers in float32: the same numbers, and nothing else changed."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tests.compiler.passes.graphs import parsed

from coda_compile.passes import operator_counts
from coda_compile.passes.cast_cumulative_sums import CastCumulativeSums

SUM = "w = Cast <to: int = {to}> (x) one = Constant <value_int: int = 1> () s = CumSum <exclusive: int = {exclusive}> (w, one) y = Cast <to: int = 1> (s)"


def of(body: str) -> ir.Model:
    return parsed(f"g (float[batch, 8] x) => (float[batch, 8] y) {{ {body} }}", shapes=True)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("to", [6, 7])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_sums_are_the_same(to: int, exclusive: int):
    body = SUM.format(to=to, exclusive=exclusive)
    before, after = of(body), of(body)
    assert CastCumulativeSums()(after).modified
    (total,) = (node for node in after.graph if node.op_type == "CumSum")
    assert total.inputs[0].dtype == ir.DataType.FLOAT
    assert total.attributes["exclusive"].as_int() == exclusive
    shape = [d if isinstance(d, int) else 5 for d in before.graph.inputs[0].shape]
    x = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    assert (run(before, x) == run(after, x)).all()


def test_sums_of_floats_stay():
    model = of("one = Constant <value_int: int = 1> () y = CumSum(x, one)")
    before = operator_counts(model)
    assert not CastCumulativeSums()(model).modified
    assert operator_counts(model) == before

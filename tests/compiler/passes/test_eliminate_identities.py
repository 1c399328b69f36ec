"""Identities go, but for those by which a graph gives what is not its own."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import outputs, parsed, serialized

from coda_compile.passes import operator_counts, run_passes
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.validity import first_fault

X = {"x": np.array([1, -2, 3], np.float32), "yes": np.array(False)}


def identities(model: ir.Model) -> list[str]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [str(node.outputs[0].name) for node in nodes if node.op_type == "Identity"]


def taken_out(text: str, left: Sequence[str], *, shapes: bool = False) -> ir.Model:
    """A model that computes under the same names what it did, with these identities."""
    model, plain = parsed(text, shapes=shapes), parsed(text)
    names = [value.name for value in plain.graph.outputs]
    run_passes(model, [EliminateIdentities()])
    assert [value.name for value in model.graph.outputs] == names
    assert identities(model) == list(left)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    feed = {value.name: X[str(value.name)] for value in plain.graph.inputs}
    for seen, expected in zip(outputs(model, feed), outputs(plain, feed), strict=True):
        np.testing.assert_array_equal(seen, expected)
    before = serialized(model)
    assert not EliminateIdentities()(model).modified
    assert serialized(model) == before
    return model


@pytest.mark.parametrize("shapes", [False, True])
def test_inside_and_at_the_end(shapes: bool):
    text = "g (float[N] x) => (float[N] y) { a = Identity(x) b = Neg(a) c = Identity(b) y = Identity(c) }"
    model = taken_out(text, [], shapes=shapes)
    assert operator_counts(model) == {"Neg": 1}


def test_a_graph_s_input_is_given_by_one():
    taken_out("g (float[N] x) => (float[N] y) { y = Identity(x) }", ["y"])


def test_one_value_under_two_names():
    text = "g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Identity(y) }"
    taken_out(text, ["z"])


BRANCHES = """
g (float[N] x, bool yes) => (float[N] y) {{
  pooled = Neg(x)
  y = If (yes) <then_branch = t () => (float[N] a) {{ {then} }}, else_branch = e () => (float[N] b) {{ b = Identity({of}) }}>
}}
"""


def test_a_branch_gives_what_it_did_not_compute_by_one():
    """As torch's exporter writes squeeze, behind every pooling by the first token."""
    taken_out(BRANCHES.format(then="a = Abs(pooled)", of="pooled"), ["b"])


def test_the_weight_of_a_branch_stays_behind_one():
    text = BRANCHES.format(then="a = Abs(pooled)", of="w").replace("{\n", "<float[3] w = {1, 2, 3}> {\n", 1)
    taken_out(text, ["b"])


def test_inside_a_branch_they_go():
    taken_out(BRANCHES.format(then="c = Identity(pooled) d = Abs(c) a = Identity(d)", of="pooled"), ["b"])


def test_sizes_are_what_either_side_says():
    model = parsed("g (float[N, 4] x) => (float[M, 4] y) { a = Neg(x) b = Identity(a) y = Abs(b) }")
    a, b = (node.outputs[0] for node in list(model.graph)[:2])
    a.shape, b.shape = ir.Shape([None, 4]), ir.Shape(["N", None])
    EliminateIdentities()(model)
    assert str(a.shape) == "[N,4]"
    assert first_fault(model) is None

"""A pass that makes a valid graph invalid is named."""

from collections.abc import Callable

import onnx_ir as ir
import pytest
from tests.compiler.passes.graphs import parsed

from coda_compile.errors import CompileError
from coda_compile.passes import run_passes
from coda_compile.passes.validity import first_fault

TEXT = """
g (float[N] x, bool yes) => (float[N] y) {
  a = Neg(x)
  b = Abs(a)
  y = If (yes) <then_branch = t () => (float[N] c) { c = Abs(b) }, else_branch = e () => (float[N] d) { d = Identity(b) }>
}
"""


def swap(model: ir.Model) -> None:
    first, second, _ = model.graph
    model.graph.remove(first)
    model.graph.insert_after(second, [first])


def rename(model: ir.Model) -> None:
    model.graph[1].outputs[0].name = "a"


def give_from_around(model: ir.Model) -> None:
    branch = model.graph[2].attributes["else_branch"].as_graph()
    branch.outputs[0] = model.graph[1].outputs[0]


def read_another_s(model: ir.Model) -> None:
    model.graph[0].replace_input_with(0, ir.Value(name="elsewhere"))


def read_another_s_inside(model: ir.Model) -> None:
    model.graph[2].attributes["then_branch"].as_graph()[0].replace_input_with(0, ir.Value(name="elsewhere"))


FAULTS: dict[Callable[[ir.Model], None], str] = {
    swap: "Abs reads 'a', which nothing before it gives",
    rename: "two values are named 'a'",
    give_from_around: "it gives 'b', which it does not compute",
    read_another_s: "Neg reads 'elsewhere', which nothing before it gives",
    read_another_s_inside: "Abs reads 'elsewhere', which nothing before it gives",
}


class SpoilGraph(ir.passes.InPlacePass):
    """Makes a graph invalid."""

    def __init__(self, change: Callable[[ir.Model], None]) -> None:
        self._change = change

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._change(model)
        return ir.passes.PassResult(model, True)


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_faults_are_found_and_their_pass_is_named(change: Callable[[ir.Model], None]):
    model = parsed(TEXT)
    assert first_fault(model) is None
    with pytest.raises(CompileError) as caught:
        run_passes(model, [SpoilGraph(change)])
    assert str(caught.value) == (
        f"the pass spoil_graph made the graph invalid ({FAULTS[change]}): please report it, with the model"
    )


def test_what_came_invalid_is_no_pass_s_fault():
    model = parsed(TEXT)
    rename(model)
    (report,) = run_passes(model, [SpoilGraph(swap)])
    assert report.name == "spoil_graph"

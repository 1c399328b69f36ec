"""Sizes that kernels read come from a Range: on real graphs, and what is left on the host."""

import numpy as np
import pytest
from tests.compiler.passes.graphs import BEFORE, compare, outputs, parsed, serialized
from tests.conftest import tiny_coda
from tests.exporting import export

from coda_compile.passes import run_passes
from coda_compile.passes.make_sizes_on_device import MakeSizesOnDevice
from coda_compile.passes.upstream import LiftConstants, RemoveUnused
from coda_models import CodaConfig

HEAD = "g (int64[B, N] x) => (int64[B, M] y)"


def test_mpnets_distances_are_moved_by_a_size_that_the_device_made():
    model = tiny_coda("mpnet", CodaConfig(reduction=2))
    compiled, report = compare(model, MakeSizesOnDevice(), before=(*BEFORE, LiftConstants()), atol=0)
    assert report.operators == {"Add": 1, "Range": 1}
    assert not MakeSizesOnDevice()(compiled).modified


def test_without_relative_positions_no_kernel_reads_a_size():
    compiled = export(tiny_coda("bert", CodaConfig(reduction=2)), opset=20)
    run_passes(compiled, (*BEFORE, RemoveUnused(), LiftConstants()))
    assert not MakeSizesOnDevice()(compiled).modified


@pytest.mark.parametrize("body", ["y = Add(x, n)", "y = Sub(n, x)", "y = Mod(x, n)", "m = Add(n, n) y = Add(x, m)"])
def test_what_is_computed_stays(body: str):
    text = f"{HEAD} {{ n = Shape <start: int = 1, end: int = 2> (x) {body} }}"
    changed, x = parsed(text, shapes=True), np.arange(6).reshape(2, 3)
    assert MakeSizesOnDevice()(changed).modified
    assert "Range" in [node.op_type for node in changed.graph]
    np.testing.assert_array_equal(outputs(changed, {"x": x})[0], outputs(parsed(text, shapes=True), {"x": x})[0])
    before = serialized(changed)
    assert not MakeSizesOnDevice()(changed).modified
    assert serialized(changed) == before


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(x) n = Add(s, s) y = Expand(x, s)",  # arithmetic on the host, and a shape
        "one = Neg(x) y = Add(x, one)",  # of tensors alone
    ],
)
def test_nothing_else_is_touched(body: str):
    model = parsed(f"{HEAD} {{ {body} }}", shapes=True)
    before = serialized(model)
    assert not MakeSizesOnDevice()(model).modified
    assert serialized(model) == before

"""What depends on constants alone becomes one, within limits; and nothing reaches into private modules for it."""

import re
from pathlib import Path

import onnx_ir as ir
from tests.compiler.passes.graphs import parsed, serialized

from coda_compile.passes import operator_counts
from coda_compile.passes.fold_constants import FoldConstants

ROOT = Path(__file__).parents[3]
PRIVATE = re.compile(r"^\s*(?:from|import)\s+(?:onnxscript|onnx_ir)(?:\.\w+)*(?:\._| import _)", re.MULTILINE)


def test_constants_are_folded_and_the_second_run_changes_nothing():
    model = parsed(
        "g (float[N] x) => (float[N] y) <float[1] a = {2}, float[1] b = {3}> { c = Add(a, b) y = Mul(x, c) }"
    )
    assert FoldConstants()(model).modified
    assert operator_counts(model)["Add"] == 0
    before = serialized(model)
    assert not FoldConstants()(model).modified
    assert serialized(model) == before


def test_large_results_stay_as_they_are():
    model = parsed("g (float[N] x) => (float[K] y) <float[1] a = {2}, int64[1] n = {600000}> { y = Expand(a, n) }")
    assert not FoldConstants()(model).modified
    assert operator_counts(model) == {"Expand": 1}


def test_real_graphs_are_folded_once(raw: ir.Model):
    assert FoldConstants()(raw).modified
    before = serialized(raw)
    assert not FoldConstants()(raw).modified
    assert serialized(raw) == before


def test_no_private_module_of_onnxscript_or_onnx_ir_is_imported():
    assert PRIVATE.search("from onnxscript.optimizer._constant_folding import FoldConstantsPass")
    assert PRIVATE.search("    import onnx_ir._core as core")
    assert PRIVATE.search("from onnxscript.rewriter import _ir_utils")
    files = [path for part in ("ops", "models", "targets", "compiler") for path in (ROOT / part).rglob("*.py")]
    assert files
    assert [str(path.relative_to(ROOT)) for path in files if PRIVATE.search(path.read_text("utf-8"))] == []

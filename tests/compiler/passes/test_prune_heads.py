"""Heads that the output projection multiplies by 0 are gone, on compiled models of every kind; all others stay."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tests.compiler.passes.graphs import assert_not_here, outputs, why_declined
from tests.conftest import tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.passes import run_passes
from coda_compile.passes.eliminate_identities import EliminateIdentities
from coda_compile.passes.fold_constants import FoldConstants
from coda_compile.passes.fuse_attention import FuseAttention
from coda_compile.passes.outcome import Fused
from coda_compile.passes.prune_heads import PruneHeads
from coda_models import CodaConfig, CodaModel
from coda_targets import Bundle

WIDTH = 8  # of a head in the tiny models, which have four


def silence(model: CodaModel, *heads: tuple[int, int]) -> CodaModel:
    """Set what the output projection does with a (layer, head) to 0."""
    layers = list(model.coda_layers())
    with torch.no_grad():
        for layer, head in heads:
            layers[layer].block.attention.out.weight[:, head * WIDTH : (head + 1) * WIDTH] = 0
    return model


def heads_of(bundle: Bundle) -> list[int]:
    """Of every attention, layer by layer."""
    nodes = onnx.load(str(bundle.model_path)).graph.node
    fused = [node for node in nodes if node.op_type.endswith("Attention")]
    return [next(a.i for a in node.attribute if a.name == "num_heads") for node in fused]


@pytest.mark.parametrize(
    ("config", "silent", "left"),
    [
        (CodaConfig(reduction=2), [(0, 0), (0, 3), (1, 2)], [2, 3]),
        (CodaConfig(reduction=2, attention="k_to_all"), [(0, 1)], [3, 4]),
        # one stays, since attention has one at least
        (CodaConfig(reduction=1), [(1, 0), (1, 1), (1, 2), (1, 3)], [4, 1]),
    ],
)
def test_silent_heads_are_gone(config: CodaConfig, silent: list[tuple[int, int]], left: list[int], tmp_path: Path):
    """Compiling verifies against torch, which still computes them."""
    bundle = compile(silence(tiny_coda("bert", config), *silent), output=tmp_path / "bundle")
    assert heads_of(bundle) == left


def test_packed_rows_lose_them_too(tmp_path: Path):
    model = silence(tiny_coda("bert", CodaConfig(reduction=2)), (1, 3))
    assert heads_of(compile(model, CompileOptions(pack=True), output=tmp_path / "bundle")) == [4, 3]


def test_heads_with_positions_of_their_own_are_declined(tmp_path: Path):
    bundle = compile(silence(tiny_coda("mpnet", CodaConfig(reduction=2)), (0, 1)), output=tmp_path / "bundle")
    assert heads_of(bundle) == [4, 4]
    declined = next(step for step in read_passes(bundle) if step["name"] == "prune_heads")["declined"]
    assert declined == {"its heads are biased differently": 1}


def read_passes(bundle: Bundle) -> list[dict[str, object]]:
    report = json.loads((bundle.folder / "report.json").read_text("utf-8"))
    passes: list[dict[str, object]] = report["variants"]["cpu"]["passes"]
    return passes


def test_quantised_weights_are_left_alone(tmp_path: Path):
    model = silence(tiny_coda("bert", CodaConfig(reduction=2)), (0, 1))
    assert heads_of(compile(model, CompileOptions(precision="int8"), output=tmp_path / "bundle")) == [4, 4]


HEADS = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[B, N, 8] x) => (float[B, N, 8] y{more})
    <float[8, 8] w = {{{ones}}}, float[8, 8] o = {{{zeros}, {half}}}, float[1, 2, 1, 1] each = {{0, 1}}>
    {{ q = MatMul(x, w) k = MatMul(x, w) v = MatMul(x, w) {tail}
       a = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v{rest}) y = MatMul(a, o) }}"""


def heads(more: str = "", rest: str = "", tail: str = "") -> ir.Model:
    """Two heads, of which the output projection multiplies the first by 0."""
    ones, zeros, half = (", ".join([number] * count) for number, count in (("1", 64), ("0", 32), ("1", 32)))
    text = HEADS.format(ones=ones, zeros=zeros, half=half, more=more, rest=rest, tail=tail)
    return ir.from_onnx_text(text)


def test_one_of_two_heads_is_gone_and_the_second_run_changes_nothing():
    model, plain = heads(), heads()
    assert PruneHeads()(model).outcomes == (Fused(),)
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)}
    np.testing.assert_allclose(outputs(model, feed)[0], outputs(plain, feed)[0], rtol=0, atol=1e-5)
    assert_not_here(PruneHeads(), model)


@pytest.mark.parametrize(
    ("model", "reason", "value"),
    [
        (heads(rest=", , , each"), "its heads are biased differently", "each"),
        (
            heads(more=", float[B, N, 8] z", tail="z = Neg(k)"),
            "a projection is no linear layer that it alone reads",
            "k",
        ),
    ],
)
def test_what_does_not_fit_is_left_alone_and_says_why(model: ir.Model, reason: str, value: str):
    declined = why_declined(PruneHeads(), model)
    assert (declined.reason, declined.value.name) == (reason, value)


def test_heads_with_weights_stay(raw: ir.Model, plain: Callable[[], ir.Model]):
    run_passes(raw, (FoldConstants(), EliminateIdentities(), FuseAttention()))
    for model in (raw, plain()):
        assert_not_here(PruneHeads(), model)

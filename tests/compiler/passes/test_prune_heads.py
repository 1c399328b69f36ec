"""Heads that nobody hears are gone, on compiled models of every kind; all others stay."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from tests.conftest import tiny_coda

from coda_compile import compile
from coda_compile.passes import run_passes
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
    fused = [node for node in nodes if node.op_type in ("Attention", "MultiHeadAttention", "SelfAttention")]
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
    assert heads_of(compile(model, output=tmp_path / "bundle", pack=True)) == [4, 3]


def test_heads_with_positions_of_their_own_are_declined(tmp_path: Path):
    bundle = compile(silence(tiny_coda("mpnet", CodaConfig(reduction=2)), (0, 1)), output=tmp_path / "bundle")
    assert heads_of(bundle) == [4, 4]
    declined = next(step for step in read_passes(bundle) if step["name"] == "prune_heads")["declined"]
    assert declined == {"its heads are biased each in another way": 1}


def read_passes(bundle: Bundle) -> list[dict[str, object]]:
    report = json.loads((bundle.folder / "report.json").read_text("utf-8"))
    passes: list[dict[str, object]] = report["variants"]["cpu"]["passes"]
    return passes


def test_rounded_weights_are_left_alone(tmp_path: Path):
    model = silence(tiny_coda("bert", CodaConfig(reduction=2)), (0, 1))
    assert heads_of(compile(model, output=tmp_path / "bundle", precision="int8")) == [4, 4]


def test_heads_that_are_heard_stay(raw: ir.Model, plain: Callable[[], ir.Model]):
    run_passes(raw, ("fold_constants", "eliminate_identities", "fuse_attention"))
    for model in (raw, plain()):
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        step = PruneHeads()
        assert not step(model).modified
        assert not step.declined
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

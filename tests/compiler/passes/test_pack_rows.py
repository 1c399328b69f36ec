"""Packed rows: the same answers from fewer of them, on every kind of layer, and where there is nothing to pack."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tests.compiler.passes.graphs import assert_not_here, parsed, serialized, why_declined
from tests.conftest import tiny_backbone, tiny_coda

from coda_compile import CompileOptions, compile
from coda_compile.backends.cpu import BACKEND
from coda_compile.passes import operator_counts, pass_name, run_passes
from coda_compile.passes.outcome import Fused
from coda_compile.passes.pack_rows import PackRows
from coda_models import CodaConfig, convert
from coda_ops import native
from coda_targets import Bundle
from coda_targets.bundle import MODEL
from coda_targets.routing import LAYER_TAG
from coda_targets.runtimes.session import open_session

PASSES = BACKEND.passes()
NAMES = [pass_name(one) for one in PASSES]
BEFORE = PASSES[: NAMES.index("fuse_projections") + 1]
AFTER = PASSES[NAMES.index("fuse_projections") + 1 :]
CONFIGS: dict[str, dict[str, Any]] = {
    "k-to-k": {"reduction": 2},
    "k-to-all": {"reduction": 2, "attention": "k_to_all"},
    "dense": {"reduction": 1},
    "dense, then routed": {"reduction": (1, 2)},
    "embeddings": {"reduction": 1, "task": "feature-extraction"},
    "stand-ins": {"reduction": (1, 2), "stand_in": 4},
    "thin keys": {"reduction": 2, "stand_in": 4, "attention": "k_to_all", "key_value_rank": 6},
    "tokens": {"reduction": 2, "task": "token-classification"},
}


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        *((name, "fp32") for name in CONFIGS),
        ("k-to-all", "int8"),
        ("dense, then routed", "int8"),
        ("thin keys", "int8"),
    ],
)
def test_answers_stay(config: str, precision: str, tmp_path: Path):
    """Compiling verifies against torch, on full and ragged batches."""
    model = tiny_coda("bert", CodaConfig(**CONFIGS[config]))
    operators = compile(
        model, CompileOptions(precision=precision, pack=True), output=tmp_path / "bundle"
    ).variant.operators
    assert operators["ai.coda::PackTokens"] > 0


def test_rows_of_dense_and_routed_layers_share_no_buffer(tmp_path: Path):
    """Their number has no name, and onnxruntime once took all of them for equal."""
    model = tiny_coda("bert", CodaConfig(reduction=(4, 1), pooling="mean"))
    plain, packed = (compile(model, CompileOptions(pack=pack), output=tmp_path / str(pack)) for pack in (False, True))
    mask = np.arange(60) < np.array([60, 7, 31, 18])[:, None]
    feed = {"input_ids": np.where(mask, 7, 0), "attention_mask": mask.astype(np.int64)}
    np.testing.assert_allclose(packed.run(feed)["logits"], plain.run(feed)["logits"], rtol=0, atol=1e-5)


def test_it_is_asked_for(compiled: Bundle):
    assert "ai.coda::PackTokens" not in compiled.variant.operators


@pytest.mark.parametrize("family", ["mpnet", "roberta-prelayernorm"])
def test_relative_positions_and_pre_norm(family: str, tmp_path: Path):
    bundle = compile(tiny_coda(family, CodaConfig(reduction=2)), CompileOptions(pack=True), output=tmp_path / "bundle")
    assert bundle.variant.operators["ai.coda::UnpackTokens"] > 0


def test_kernels_and_bodies_agree(tmp_path: Path):
    if native.library() is None:
        pytest.skip("native kernels are not built")
    bundle = compile(tiny_coda("bert", CodaConfig(reduction=2)), CompileOptions(pack=True), output=tmp_path / "bundle")
    mask = np.arange(20) < np.array([20, 3, 1, 11])[:, None]
    feed = bundle.prepare({"input_ids": np.where(mask, 7, 0), "attention_mask": mask})
    with_kernels, without = (
        open_session(bundle.folder / MODEL, replace(bundle.runtime, kernels=kernels)).run(None, feed)[0]
        for kernels in ("cpu", "")
    )
    np.testing.assert_allclose(with_kernels, without, rtol=0, atol=1e-5)


def test_every_linear_layer_runs_on_rows(raw: ir.Model):
    run_passes(raw, BEFORE)
    assert PackRows()(raw).outcomes == (Fused(), Fused())
    run_passes(raw, AFTER)
    for node in raw.graph:
        if node.op_type == "MatMul" and node.metadata_props["coda.role"] in ("attention", "feed_forward"):
            shape = node.outputs[0].shape
            assert shape is not None
            assert len(shape) == 2
    counts = operator_counts(raw)
    assert counts["ai.coda::PackTokens"] == 4  # tokens taken and tokens mixed, in two layers
    assert counts["ai.coda::UnpackTokens"] == 4  # queries, keys and values in one, and the update


def test_second_run_changes_nothing(raw: ir.Model):
    run_passes(raw, (*BEFORE, PackRows()))
    assert_not_here(PackRows(), raw)


def test_nothing_to_pack(plain: Callable[[], ir.Model]):
    assert_not_here(PackRows(), plain())


def test_layer_without_a_mask_is_declined(raw: ir.Model):
    run_passes(raw, BEFORE)
    for node in raw.graph:
        if node.op_type in ("Route", "TakeTokens"):
            node.domain = "other"
        if node.op_type == "Cast":
            node.domain = "other"
    before = serialized(raw)
    result = PackRows()(raw)
    assert not result.modified
    assert result.declined == {"nothing says which tokens are valid": 2}
    assert serialized(raw) == before


def test_a_layer_without_linear_layers_is_declined_and_gains_no_mask():
    model = parsed("""g (int64[B, N] mask, float[B, N, 4] x) => (float[B, N, 4] y, bool[B, N] valid)
        { valid = Cast <to = 9> (mask) y = Gelu(x) }""")
    model.graph[1].metadata_props[LAYER_TAG] = "0"
    model.graph[1].outputs[0].shape = ir.Shape(["B", "N", 4])
    assert why_declined(PackRows(), model).reason == "no linear layer treats its tokens one by one"


def test_which_of_two_masks_is_meant_nothing_says():
    model = parsed("""g (int64[B, N] mask, int64[B, N] other, float[B, N, 4] x)
        => (float[B, N, 4] y, bool[B, N] valid, bool[B, N] more)
        { valid = Cast <to = 9> (mask) more = Cast <to = 9> (other) y = Gelu(x) }""")
    model.graph[2].metadata_props[LAYER_TAG] = "0"
    assert why_declined(PackRows(), model).reason == "nothing says which tokens are valid"


@pytest.mark.parametrize("name", ["embeddings", "tokens"])
def test_test_data_are_what_onnxs_own_runner_expects(name: str, tmp_path: Path):
    """Padding included, of which packed rows know nothing; by onnx and onnxruntime alone."""
    model = tiny_coda("bert", CodaConfig(**CONFIGS[name]))
    bundle = compile(model, CompileOptions(pack=True), output=tmp_path / "bundle")

    def read(kind: str) -> dict[str, Any]:
        found = [onnx.load_tensor(str(path)) for path in sorted((bundle.folder / "test_data_set_0").glob(f"{kind}_*"))]
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in found}

    inputs, wanted = read("input"), read("output")
    assert (inputs["attention_mask"] == 0).any()
    session = onnxruntime.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert list(wanted) == names
    for output, given in zip(names, session.run(names, inputs), strict=True):
        np.testing.assert_allclose(given, wanted[output], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("pack", [False, True])
def test_a_first_token_that_is_padding_is_what_the_head_reads(pack: bool, precision: str, tmp_path: Path):
    """As in the library that the model comes from."""
    backbone = tiny_backbone("bert")
    mask = np.arange(20) >= np.array([0, 5, 19, 11])[:, None]
    ids = np.where(mask, np.random.default_rng(0).integers(1, 100, mask.shape), 0)
    with torch.inference_mode():
        wanted = backbone(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64))).logits
    model = convert(backbone, CodaConfig(reduction=1))  # new adapters do nothing
    bundle = compile(model, CompileOptions(pack=pack, precision=precision), output=tmp_path / "bundle")
    given = bundle.run({"input_ids": ids, "attention_mask": mask.astype(np.int64)})["logits"]
    np.testing.assert_allclose(given, wanted.numpy(), rtol=0, atol=1e-5 if precision == "fp32" else 0.2)

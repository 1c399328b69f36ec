"""Reading routing decisions out of a compiled model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.conftest import tiny_coda

import coda_targets.routing
from coda_models import CodaConfig
from coda_ops.files import PREFIX
from coda_targets import Bundle, BundleError
from coda_targets.errors import InputError
from coda_targets.routing import LAYER_TAG, Decision, RoutingProbe


def inputs(batch: int, tokens: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    ids = random.integers(0, 100, (batch, tokens))
    mask = np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 2), (3, 7), (4, 33), (2, 66)])
def test_decisions_equal_torchs(compiled: Bundle, batch: int, tokens: int):
    feed = inputs(batch, tokens, seed=batch * tokens)
    _, decisions = RoutingProbe.of(compiled).run(feed)
    model = tiny_coda("bert", CodaConfig(reduction=2))
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in feed.items()}, output_routing=True)
    assert [decision.layer for decision in decisions] == [0, 1]
    valid = feed["attention_mask"].astype(bool)
    for decision, routing in zip(decisions, expected.routing, strict=True):
        np.testing.assert_allclose(decision.scores[valid], routing.scores.numpy()[valid], atol=5e-5)
        np.testing.assert_array_equal(decision.used, routing.used.numpy())
        np.testing.assert_array_equal(decision.indices[decision.used], routing.indices.numpy()[decision.used])
        # At ε = 0.03 a gate's slope is 1/ε times its score's, so noise of 1e-6 in scores is 1e-4 in gates.
        np.testing.assert_allclose(decision.gates, routing.gates.numpy(), atol=2e-3)


def test_outputs_equal_those_of_run(compiled: Bundle):
    feed = inputs(3, 21, seed=4)
    outputs, _ = RoutingProbe.of(compiled).run(feed)
    assert list(outputs) == ["logits"]
    np.testing.assert_allclose(outputs["logits"], compiled.run(feed)["logits"], atol=1e-6)


def test_decision_has_the_documented_form(compiled: Bundle):
    _, decisions = RoutingProbe.of(compiled).run(inputs(2, 9, seed=1))
    for decision in decisions:
        assert (decision.scores.dtype, decision.scores.shape) == (np.float32, (2, 9))
        assert (decision.indices.dtype, decision.indices.shape) == (np.int64, (2, 5))
        assert (decision.gates.dtype, decision.gates.shape) == (np.float32, (2, 5))
        assert (decision.used.dtype, decision.used.shape) == (np.bool_, (2, 5))


def test_selected_leaves_unused_slots_out():
    decision = Decision(
        0,
        np.zeros((1, 4), np.float32),
        np.array([[1, 3, 0]]),
        np.zeros((1, 3), np.float32),
        np.array([[True, True, False]]),
    )
    assert decision.selected(0) == [1, 3]


def test_the_file_is_not_changed(copied: Path):
    before = (copied / "model.onnx").read_bytes()
    RoutingProbe.of(Bundle(copied))
    assert (copied / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("content", [None, b"no model at all"])
def test_missing_or_damaged_model(copied: Path, content: bytes | None):
    (copied / "model.onnx").unlink()
    if content is not None:
        (copied / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx is missing or damaged: \w+; compile it again"):
        RoutingProbe.of(Bundle(copied))


def test_cut_off_model(copied: Path):
    content = (copied / "model.onnx").read_bytes()
    (copied / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError):
        RoutingProbe.of(Bundle(copied))


@pytest.mark.parametrize("value", [None, "", "first"])
def test_route_without_its_layer(copied: Path, value: str | None):
    path = copied / "model.onnx"
    model = onnx.load(str(path))
    for node in model.graph.node:
        if node.op_type == "Route":
            kept = [p for p in node.metadata_props if p.key != LAYER_TAG]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
            if value is not None:
                node.metadata_props.add(key=LAYER_TAG, value=value)
    onnx.save(model, str(path))
    with pytest.raises(BundleError, match=r"has a Route node without its layer"):
        RoutingProbe.of(Bundle(copied))


def test_input_that_cannot_run(compiled: Bundle):
    feed = inputs(1, 4, seed=0)
    feed["input_ids"][0, 0] = 1000
    with pytest.raises(InputError, match=r"onnxruntime cannot run the model on this input"):
        RoutingProbe.of(compiled).run(feed)


def test_empty_model(copied: Path):
    (copied / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx is damaged: it has no graph; compile it again"):
        RoutingProbe.of(Bundle(copied))


def test_copy_of_a_model_lies_where_the_next_run_would_find_it(
    compiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed in the middle, it is gigabytes in the folder of temporary files."""
    seen = []
    opened = coda_targets.routing.open_session

    def noted(model: Path, *arguments: Any, **options: Any) -> Any:
        seen.append((model.parents[2], model.parents[1].name.startswith(PREFIX)))
        return opened(model, *arguments, **options)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(coda_targets.routing, "open_session", noted)
    RoutingProbe.of(compiled)
    assert seen == [(tmp_path, True)]
    assert list(tmp_path.iterdir()) == []

"""ONNX files of other exporters compile to what their own model computes, and no worse."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tests.compiler.exports import NAMES, lora_classifier, with_lora, write
from tests.compiler.prepare.test_fit_ood import some_texts
from tests.compiler.prepare.test_fit_ood import write as write_texts
from tests.conftest import tiny_backbone
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.errors import CodaError, CompileError, OptionError, VerificationError
from coda_compile.inspect.predict import predict
from coda_compile.sources.onnx_graph import original, read
from coda_compile.verify.reference_vectors import verify_bundle
from coda_models.ood import METHODS
from coda_targets import Bundle


def unseen(names: tuple[str, ...], batch: int, tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    lengths = random.integers(1, tokens + 1, batch)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    ids = random.integers(4, 90, (batch, tokens)) * mask
    return {name: {"input_ids": ids, "attention_mask": mask}.get(name, np.zeros_like(ids)) for name in names}


@pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (True, 20), (False, 14), (False, 17)])
@pytest.mark.parametrize(("family", "inputs"), [("bert", 3), ("roberta", 2)])
def test_an_unmerged_lora_costs_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, inputs: int, dynamo: bool, opset: int
):
    model = lora_classifier(family)
    path = write(model, tmp_path / "lora", dynamo=dynamo, inputs=inputs, opset=opset, tokenizer=tokenizer)
    bundle = compile(path.parent, output=tmp_path / "bundle")
    for batch, tokens in ((1, 1), (5, 23), (2, 61)):
        given = unseen(bundle.manifest.signature.names, batch, tokens)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
        np.testing.assert_allclose(bundle.run(given)["logits"], expected, atol=1e-5)
    base = write(tiny_backbone(family), tmp_path / "base", dynamo=dynamo, inputs=inputs, opset=opset)
    plain = compile(base, output=tmp_path / "plain")
    assert bundle.variant.operators == plain.variant.operators
    assert [record["label"] for _, record, _ in predict(bundle, some_texts(3))]
    verify_bundle(bundle)


@pytest.mark.parametrize("opset", [18, 20])
def test_attention_whose_sizes_torchscript_leaves_open(tmp_path: Path, opset: int):
    """onnxscript's rule would begin to fuse it, and leave an operator that no runtime knows."""
    model = AutoModelForSequenceClassification.from_config(tiny_backbone("bert").config, attn_implementation="eager")
    bundle = compile(write(model.eval(), tmp_path / "eager", dynamo=False, opset=opset), output=tmp_path / "bundle")
    given = unseen(bundle.manifest.signature.names, 3, 17)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    np.testing.assert_allclose(bundle.run(given)["logits"], expected, atol=1e-5)


class FirstToken(nn.Module):
    """As sentence-transformers' exporters write a pooling by a token: squeeze becomes an If."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny_backbone("bert", "feature-extraction")

    def forward(self, input_ids, attention_mask, token_type_ids):
        states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        tokens = torch.arange(attention_mask.shape[1]) == 0
        return {"logits": states[:, tokens].squeeze(1)}  # nobody knows how many tokens these are


def test_a_branch_in_the_graph(tmp_path: Path):
    model = FirstToken().eval()
    path = write(model, tmp_path / "branch", output="sentence_embedding", dynamo=False, opset=17)
    assert "If" in {node.op_type for node in onnx.load(str(path)).graph.node}
    bundle = compile(path, output=tmp_path / "bundle")
    given = unseen(bundle.manifest.signature.names, 3, 17)
    with torch.inference_mode():
        expected = model(*(torch.from_numpy(given[name]) for name in NAMES))["logits"].numpy()
    np.testing.assert_allclose(bundle.run(given)["sentence_embedding"], expected, atol=1e-5)


def test_what_torch_exported_is_fused_as_our_own_exports_are(tmp_path: Path):
    operators = compile(write(lora_classifier(), tmp_path), output=tmp_path / "bundle").variant.operators
    assert operators["ai.coda::AddNorm"] == 4
    assert operators["ai.coda::AddGelu"] == 2
    assert "Softmax" not in operators


def test_a_manifest_without_layers(tmp_path: Path):
    bundle = compile(write(lora_classifier(), tmp_path), output=tmp_path / "bundle")
    assert (bundle.manifest.layers, bundle.manifest.width, bundle.manifest.coda_config) == ((), 0, {})
    assert (bundle.manifest.architecture, bundle.manifest.task) == ("bert", "sequence-classification")
    assert bundle.manifest.outputs[0].shape == ("batch", 3)
    report = json.loads((bundle.folder / "report.json").read_text())
    merged = next(item for item in report["variants"]["cpu"]["passes"] if item["name"] == "merge_low_rank")
    assert merged["operators"]["MatMul"] == -8


def test_taggers_compile(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = with_lora(tiny_backbone("bert", "token-classification"), "TOKEN_CLS")
    bundle = compile(write(model, tmp_path / "lora", tokenizer=tokenizer), output=tmp_path / "bundle")
    assert bundle.manifest.task == "token-classification"
    ((_, record, _),) = predict(bundle, ["good film"])
    assert [token["token"] for token in record["tokens"]] == ["good", "film"]


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny_backbone("bert", "feature-extraction")

    def forward(self, input_ids, attention_mask, token_type_ids):
        states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return {"logits": (states * mask).sum(1) / mask.sum(1)}


def test_embedders_compile(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    path = write(Embedder(), tmp_path / "embedder", output="sentence_embedding", tokenizer=tokenizer)
    bundle = compile(path, output=tmp_path / "bundle")
    assert (bundle.manifest.task, bundle.manifest.labels) == ("feature-extraction", ())
    ((_, record, _),) = predict(bundle, ["good film"])
    assert len(record["embedding"]) == 32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "dynamo"), [("bert", True), ("roberta", False)])
def test_a_detector_stands_behind_the_logits(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, dynamo: bool, method: str
):
    known = write_texts(tmp_path / "known.csv", [(t, f"LABEL_{i % 3}") for i, t in enumerate(some_texts(150))])
    model = lora_classifier(family)
    path = write(model, tmp_path / "lora", inputs=2, tokenizer=tokenizer, dynamo=dynamo, opset=20 if dynamo else 14)
    bundle = compile(path, CompileOptions(ood=method, ood_data=known), output=tmp_path / "bundle")
    assert bundle.manifest.ood is not None
    assert [tensor.name for tensor in bundle.manifest.outputs] == ["logits", "ood_score", "is_ood"]
    assert bundle.manifest.outputs[1].shape == ("batch",)
    records = [record for _, record, _ in predict(bundle, some_texts(150))]
    assert all(record["is_ood"] == (record["ood_score"] > bundle.manifest.ood.threshold) for record in records)
    assert 1 <= sum(record["is_ood"] for record in records) <= 150 * 0.12
    if method == "maxlogit":
        given = unseen(("input_ids", "attention_mask"), 4, 9)
        outputs = bundle.run(given)
        np.testing.assert_allclose(outputs["ood_score"], -outputs["logits"].max(-1), atol=1e-6)
    verify_bundle(bundle)


def test_features_may_be_an_output_of_their_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    known = write_texts(tmp_path / "known.csv", [(t, f"LABEL_{i % 3}") for i, t in enumerate(some_texts(150))])
    path = write(lora_classifier(), tmp_path / "lora", tokenizer=tokenizer)
    proto = onnx.load(str(path))
    last = next(node for node in proto.graph.node if "logits" in node.output)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, ["n", 32]))
    onnx.save(proto, str(path))
    bundle = compile(path, CompileOptions(ood="cosine", ood_data=known), output=tmp_path / "bundle")
    assert [t.name for t in bundle.manifest.outputs] == ["logits", last.input[0], "ood_score", "is_ood"]
    assert bundle.run(unseen(("input_ids",), 2, 5))[last.input[0]].shape == (2, 32)


def test_a_score_needs_a_last_product(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    known = write_texts(tmp_path / "known.csv", [(t, f"LABEL_{i % 3}") for i, t in enumerate(some_texts(150))])
    path = write(lora_classifier(), tmp_path / "lora", tokenizer=tokenizer)
    proto = onnx.load(str(path))
    last = next(node for node in proto.graph.node if "logits" in node.output)
    last.output[:] = ["before"]
    proto.graph.node.append(onnx.helper.make_node("Tanh", ["before"], ["logits"]))
    onnx.save(proto, str(path))
    with pytest.raises(CompileError, match=r"computes logits by no product: out-of-distribution scores read its input"):
        compile(path, CompileOptions(ood="energy", ood_data=known), output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "options", [{"precision": "int8"}, {"reduction": 2}, {"pack": True}, {"backbone": "somewhere"}], ids=str
)
def test_options_that_need_a_model_are_refused(tmp_path: Path, options: dict[str, object]):
    path = write(lora_classifier(), tmp_path)
    (name,) = options
    with pytest.raises(OptionError, match=rf"is an ONNX file and compiles as it is, in fp32: for {name} give the"):
        compile(path, CompileOptions(**options), output=tmp_path / "bundle")  # type: ignore[arg-type]


def test_an_opset_of_the_future_is_refused(tmp_path: Path):
    path = write(lora_classifier(), tmp_path)
    proto = onnx.load(str(path))
    proto.opset_import[0].version = 24
    proto.ir_version = 11
    onnx.save(proto, str(path))
    with pytest.raises(CodaError, match=r"is of opset 24: export it with opset 23 or older"):
        compile(path, output=tmp_path / "bundle")


def test_a_pass_that_computes_something_else_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(model: ir.Model, names: object) -> list[object]:
        value = next(v for v in model.graph.initializers.values() if v.shape is not None and len(v.shape) == 1)
        array = value.const_value.numpy() + np.float32(0.1)
        value.const_value = ir.tensor(array, name=value.name)
        return []

    monkeypatch.setattr("coda_compile.pipeline.run_passes", run)
    path = write(lora_classifier(), tmp_path / "lora")
    with pytest.raises(
        VerificationError, match=r"^verification failed on input '.+': logits differ by .+; reproduction"
    ):
        compile(path, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle-failed" / "reproduce.py").is_file()


def test_the_same_file_gives_the_same_bytes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    path = write(lora_classifier(), tmp_path / "lora", tokenizer=tokenizer)
    first, second = (compile(path, output=tmp_path / name) for name in ("first", "second"))
    assert first.manifest.files == second.manifest.files


def test_the_original_runs_as_it_was_written(tmp_path: Path):
    model = lora_classifier()
    path = write(model, tmp_path)
    given = unseen(("input_ids", "attention_mask", "token_type_ids"), 3, 17)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    np.testing.assert_allclose(original(path, read(path).model)(given)["logits"], expected, atol=1e-5)


def test_bundles_of_graphs_open_without_torch(tmp_path: Path):
    compile(write(lora_classifier(), tmp_path), output=tmp_path / "bundle")
    assert Bundle(tmp_path / "bundle").labels() == ("LABEL_0", "LABEL_1", "LABEL_2")

"""ONNX files that give the states of tokens alone: pooled as sentence-transformers pools what lies around them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import modules
from tests.compiler.exports import write
from tests.conftest import tiny_backbone
from tests.sentences import embedded, encoded, opened, save_sentence
from torch import nn
from transformers import PreTrainedTokenizerFast

from coda_compile import compile
from coda_compile.sources.onnx_graph import read
from coda_models.errors import UnsupportedModelError


class States(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids, attention_mask, token_type_ids):
        return {"logits": self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state}


def exported(whole: Path, folder: Path) -> Path:
    """The folder of an embedding model with ``onnx/model.onnx`` for its weights, as sentence-transformers lays it out."""
    shutil.copytree(whole, folder)
    encoder = opened(whole)[0].auto_model.eval()
    write(States(encoder), folder / "onnx", output="last_hidden_state", dynamo=False, opset=14)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(("pooling", "behind"), [("mean", [modules.Normalize()]), ("cls", [])])
def test_the_embedding_is_that_of_sentence_transformers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pooling: str, behind: list[nn.Module]
):
    whole = save_sentence(tmp_path / "whole", tokenizer, *behind, pooling=pooling)
    bundle = compile(exported(whole, tmp_path / "folder"), output=tmp_path / "bundle")
    assert bundle.manifest.task == "feature-extraction"
    assert [output.name for output in bundle.manifest.outputs] == ["last_hidden_state", "sentence_embedding"]
    assert bundle.manifest.outputs[1].shape == ("batch", 32)
    expected = encoded(opened(whole))
    np.testing.assert_allclose(embedded(bundle), expected, atol=1e-5)
    np.testing.assert_allclose(
        encoded(opened(bundle.folder, backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"})),
        expected,
        atol=1e-5,
    )


def test_nothing_says_how_to_pool(tmp_path: Path):
    path = write(States(tiny_backbone("bert", "feature-extraction")), tmp_path, output="last_hidden_state")
    graph = read(path)
    assert graph.sentence is not None
    assert (graph.sentence.pooling, graph.sentence.said) == (("mean",), False)
    inputs = graph.signature.random(3, 7, ragged=True)
    found = graph.run(inputs)
    states, mask = torch.from_numpy(found["last_hidden_state"]), torch.from_numpy(inputs["attention_mask"])
    pooled = modules.Pooling(32)({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    np.testing.assert_allclose(found["sentence_embedding"], pooled.numpy(), atol=1e-6)


def test_texts_are_cut_as_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = exported(save_sentence(tmp_path / "whole", tokenizer), tmp_path / "folder")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    graph = read(folder / "onnx" / "model.onnx")
    assert graph.signature.max_length == 9


def test_what_else_stands_behind_states_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    projected = save_sentence(tmp_path / "projected", tokenizer, modules.Dense(32, 8))
    with pytest.raises(
        UnsupportedModelError, match=r"makes an embedding of states by mean, Dense, and mean or first wi"
    ):
        read(exported(projected, tmp_path / "folder") / "onnx" / "model.onnx")
    largest = save_sentence(tmp_path / "largest", tokenizer, pooling="max")
    with pytest.raises(UnsupportedModelError, match=r"makes an embedding of states by max, and mean or first with"):
        read(exported(largest, tmp_path / "other") / "onnx" / "model.onnx")

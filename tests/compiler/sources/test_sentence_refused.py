"""Folders of sentence-transformers that have no compiled form, or are damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer import modules
from tests.json_files import edit
from tests.sentences import save_sentence
from transformers import PreTrainedTokenizerFast

from coda_compile.sources import read_source
from coda_ops.errors import CodaError


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


KIND = "sentence_transformers.sentence_transformer.modules.normalize.Normalize"


@pytest.mark.parametrize(
    "name",
    [
        "sentence_transformers.models.WeightedLayerPooling",
        "sentence_transformers.models.CNN",
        "sentence_transformers.models.LSTM",
        "sentence_transformers.models.BoW",
        "sentence_transformers.models.StaticEmbedding",
        "sentence_transformers.models.Router",
        "sentence_transformers.models.Asym",
        "sentence_transformers.models.WordWeights",
        "sentence_transformers.models.CLIPModel",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
        "sentence_transformers.sparse_encoder.models.SparseAutoEncoder",
        "pylate.models.Dense.Dense",
        "modeling_own.Normalize",
        "Normalize",
    ],
)
def test_other_modules(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Normalize())
    replace_in(folder / "modules.json", KIND, name)
    with pytest.raises(CodaError, match=f"modules.json lists {name}, which has no compiled form: Transformer, Pool"):
        read_source(folder)


REFUSED = {  # the file, what is changed in it, and what is said
    "default prompt": (
        "config_sentence_transformers.json",
        {"default_prompt_name": "query", "prompts": {"query": "query: "}},
        "puts the prompt 'query' in front of every text .default_prompt_name.*: set it to null",
    ),
    "prompts that are none": ("config_sentence_transformers.json", {"prompts": [3]}, "prompts should be texts by name"),
    "sparse encoder": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a sparse encoder"),
    "width of nothing": ("config_sentence_transformers.json", {"truncate_dim": 0}, "outputs 0 of a Truncate is not a"),
    "pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, "pools by 'median', which has no compiled form"),
    "our name": ("1_Pooling/config.json", {"pooling_mode": "first"}, "pools by 'first', which has no compiled form"),
    "no poolings": ("1_Pooling/config.json", {"pooling_mode": []}, "is damaged: it should say how sentences are"),
    "key of Pooling": ("1_Pooling/config.json", {"pooling_temperature": 2}, "sets 'pooling_temperature', which has"),
    "key of Dense": ("2_Dense/config.json", {"use_residual": True}, "sets 'use_residual', which has no compiled form"),
    "Dense of tokens": ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "only a Dense of whole"),
    "activation": (
        "2_Dense/config.json",
        {"activation_function": "torch.nn.modules.activation.Hardtanh"},
        "has the activation 'torch.nn.modules.activation.Hardtanh', which has no compiled form: Identity, Tanh",
    ),
    "activation of one's own": ("2_Dense/config.json", {"activation_function": "own.Tanh"}, "has the activation 'own"),
    "no activation": ("2_Dense/config.json", {"activation_function": None}, "has the activation None"),
    "width": ("2_Dense/config.json", {"in_features": 31}, "the weights in .*2_Dense do not fit its config.json in"),
    "width that is none": ("2_Dense/config.json", {"in_features": "x"}, "2_Dense is damaged: inputs 'x' of a Dense"),
    "bias": ("2_Dense/config.json", {"bias": False}, "do not fit its config.json in 'linear.bias'"),
    "LayerNorm": ("3_LayerNorm/config.json", {"dimension": 9}, "do not fit its config.json in 'norm.bias'"),
    "task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "has transformer_task 'fill-mask'"),
    "states": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
        "has modality_config .*pooler_output.*, which has no compiled form",
    ),
    "arguments": ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}}, "sets 'num_hidden_layers'"),
    "tokenizer": ("sentence_bert_config.json", {"tokenizer_name_or_path": "other"}, "sets 'tokenizer_name_or_path'"),
    "length": ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length 0 is no number of tokens"),
    "case": ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case 'yes' is neither true nor false"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_is_refused(folder: Path, what: str):
    name, changes, message = REFUSED[what]
    edit(folder / name, **changes)
    with pytest.raises(CodaError, match=message) as caught:
        read_source(folder)
    assert "\n" not in str(caught.value)


def test_prompts_left_out_of_the_pooling(folder: Path):
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "query: "})
    with pytest.raises(CodaError, match="leaves prompts out of the pooling .include_prompt"):
        read_source(folder)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "2_Dense/config.json"])
@pytest.mark.parametrize("text", ["", "{", "3", "[3]", '{"a": 1}', "[" * 100_000])
def test_damaged_files(folder: Path, name: str, text: str):
    (folder / name).write_text(text)
    with pytest.raises(CodaError) as caught:
        read_source(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../other", "/etc", "a\\b", "1_Pooling/../../x"])
def test_paths_that_leave_the_folder(folder: Path, path: str):
    replace_in(folder / "modules.json", '"2_Dense"', json.dumps(path))
    with pytest.raises(CodaError, match="which lies outside of the model: do not use it"):
        read_source(folder)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 0, 2, 3], "lists no Transformer or not as its first"),
        ([0, 2, 1, 3], "lists Dense out of place: one Pooling comes second"),
        ([0, 1, 1], "lists Pooling out of place"),
        ([0, 0, 1], "lists no Transformer or not as its first and only one"),
        ([0], "lists no Pooling, so no embedding stands for a text"),
        ([], "lists no Transformer"),
    ],
)
def test_other_orders(folder: Path, order: list[int], message: str):
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([listed[i] for i in order]))
    with pytest.raises(CodaError, match=message):
        read_source(folder)


def test_weights_that_are_too_many(folder: Path):
    path = folder / "2_Dense" / "model.safetensors"
    save_file({**load_file(path), "gate.weight": torch.ones(3)}, path)
    with pytest.raises(CodaError, match="2_Dense do not fit its config.json in 'gate.weight'"):
        read_source(folder)


def test_weights_that_are_absent(folder: Path):
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CodaError, match="2_Dense holds no model.safetensors or pytorch_model.bin: save it again"):
        read_source(folder)


def test_numbered_folders_without_a_list(folder: Path):
    (folder / "modules.json").unlink()
    with pytest.raises(CodaError, match="has 2_Dense and no modules.json that says what it is for"):
        read_source(folder)


@pytest.mark.parametrize("name", ["config_setfit.json", "model_head.pkl", "model_head.safetensors"])
def test_setfit(folder: Path, name: str):
    (folder / name).write_text("{}")
    with pytest.raises(CodaError, match=f"is a SetFit classifier .{name}., whose head cannot be compiled: compile its"):
        read_source(folder)

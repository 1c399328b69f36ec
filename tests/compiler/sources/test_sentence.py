"""Folders of sentence-transformers give what ``SentenceTransformer(folder).encode`` does, or are refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer import modules
from tests.conftest import example_inputs, tiny_backbone
from tests.json_files import edit
from tests.sentences import OLD_KEYS, TEXTS, embedded, encoded, in_old_format, opened, save_sentence
from tests.targets.runtimes.test_openvino import needs_plugin
from transformers import PreTrainedTokenizerFast

from coda_compile import CompileOptions, compile
from coda_compile.cli.summaries import inspected
from coda_compile.sources import read_source
from coda_models import CodaConfig, convert, load, save
from coda_models.backbone import load_backbone
from coda_targets import Bundle

BEHIND = {
    "Dense": lambda: [modules.Dense(32, 8)],
    "Dense without bias, GELU": lambda: [modules.Dense(32, 8, bias=False, activation_function=torch.nn.GELU())],
    "Dense, Identity, Normalize": lambda: [
        modules.Dense(32, 40, activation_function=torch.nn.Identity()),
        modules.Normalize(),
    ],
    "LayerNorm": lambda: [modules.LayerNorm(32)],
    "Normalize": lambda: [modules.Normalize()],
    "Dropout, Dense, LayerNorm, Dense, Normalize": lambda: [
        modules.Dropout(0.4),
        modules.Dense(32, 16),
        modules.LayerNorm(16),
        modules.Dense(16, 8, activation_function=torch.nn.ReLU()),
        modules.Normalize(),
    ],
}


POOLINGS = [*OLD_KEYS, ("cls", "mean"), tuple(OLD_KEYS)]


def close(got: Any, wanted: Any) -> None:
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=3e-5, rtol=1e-5)


def read_embeddings(folder: Path, texts: list[str] = TEXTS) -> Any:
    source = read_source(folder)
    assert source.tokenizer is not None
    inputs = source.tokenizer(
        texts, padding=True, truncation=True, max_length=source.model.signature.max_length, return_tensors="pt"
    )
    with torch.inference_mode():
        output = source.model(**{name: inputs[name] for name in source.model.signature.names})
    return output.sentence_embedding.numpy()


@pytest.mark.parametrize("form", ["new", "old"])
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_poolings(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pooling: Any, form: str):
    folder = save_sentence(tmp_path / "m", tokenizer, pooling=pooling)
    if form == "old":
        in_old_format(folder)
    close(read_embeddings(folder), encoded(opened(folder)))


def test_poolings_in_an_order_of_their_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Dense(96, 8), pooling=("mean", "cls", "mean"))
    bundle = compile(folder, output=tmp_path / "b")
    close(embedded(bundle), encoded(opened(folder)))
    close(encoded(opened(bundle.folder, backend="onnx")), encoded(opened(folder)))


@pytest.mark.parametrize("behind", list(BEHIND))
def test_modules_behind_pooling(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, behind: str):
    folder = save_sentence(tmp_path / "m", tokenizer, *BEHIND[behind](), pooling="cls")
    close(read_embeddings(folder), encoded(opened(folder)))


@pytest.mark.parametrize("behind", ["Normalize", "Dense without bias, GELU", list(BEHIND)[-1]])
def test_modules_in_a_bundle(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, behind: str):
    """The graph has computed all of them; sentence-transformers computes them once, from the tokens' states."""
    folder = save_sentence(tmp_path / "m", tokenizer, *BEHIND[behind](), pooling="max")
    wanted = encoded(opened(folder))
    bundle = compile(folder, output=tmp_path / "b")
    close(embedded(bundle), wanted)
    close(encoded(opened(bundle.folder, backend="onnx")), wanted)


@pytest.mark.parametrize(
    "options",
    [{"precision": "int8"}, {"pack": True}, pytest.param({"target": "openvino"}, marks=needs_plugin)],
    ids=["int8", "packed", "openvino"],
)
def test_other_ways_to_compile(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]):
    behind = BEHIND["Dropout, Dense, LayerNorm, Dense, Normalize"]()
    behind[1] = modules.Dense(192, 16)
    folder = save_sentence(tmp_path / "m", tokenizer, *behind, pooling=tuple(OLD_KEYS), family="mpnet")
    edit(folder / "tokenizer_config.json", model_max_length=30)
    bundle = compile(folder, CompileOptions(**options), output=tmp_path / "b")
    wanted = encoded(opened(folder))
    got = embedded(bundle)
    assert (np.einsum("ij,ij->i", got, wanted) > 0.99).all()
    if "precision" not in options:
        close(got, wanted)


@pytest.mark.parametrize("pooling", OLD_KEYS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padding_on_the_left(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str, pooling: str):
    folder = save_sentence(tmp_path / "m", tokenizer, pooling=pooling, family=family)
    edit(folder / "tokenizer_config.json", padding_side="left", model_max_length=30)
    theirs = opened(folder)
    features = theirs.preprocess(TEXTS)
    assert not features["attention_mask"][0, 0]
    ours = read_source(folder).model
    with torch.inference_mode():
        got = ours(**{name: features[name] for name in ours.signature.names}).sentence_embedding.numpy()
    close(got, encoded(theirs))


def test_transformer_in_a_folder_of_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Normalize(), pooling="max")
    (folder / "0_Transformer").mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(folder / "0_Transformer" / path.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    edit(folder / "0_Transformer" / "sentence_bert_config.json", max_seq_length=13)
    close(read_embeddings(folder), encoded(opened(folder)))


def test_paths_are_those_of_the_list(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer, pooling="cls")
    shutil.copytree(folder / "1_Pooling", folder / "5_Pooling")
    edit(folder / "1_Pooling" / "config.json", pooling_mode="max")
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = "5_Pooling"
    (folder / "modules.json").write_text(json.dumps(listed))
    close(read_embeddings(folder), encoded(opened(folder)))


def test_weights_of_torch(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Dense(32, 8))
    path = folder / "2_Dense" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    close(read_embeddings(folder), encoded(opened(folder)))


def test_head_that_modules_leave_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """A transformer saved with a head embeds texts where modules.json says so."""
    folder = save_sentence(tmp_path / "m", tokenizer, pooling="cls")
    edit(folder / "config.json", architectures=["BertForMultipleChoice"])
    close(read_embeddings(folder), encoded(opened(folder)))


def test_truncated_embeddings(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Normalize(), truncate_dim=5)
    bundle = compile(folder, output=tmp_path / "b")
    assert bundle.manifest.outputs[1].shape == ("batch", 5)
    close(embedded(bundle), encoded(opened(folder)))
    close(encoded(opened(bundle.folder, backend="onnx")), encoded(opened(folder)))


def test_checkpoints_of_such_a_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer, *BEHIND["Dense, Identity, Normalize"](), pooling="lasttoken")
    edit(folder / "sentence_bert_config.json", max_seq_length=17)
    source = read_source(folder)
    save(source.model, tmp_path / "model.pt", tokenizer=source.tokenizer)
    assert load(tmp_path / "model.pt").model.coda_config == source.model.coda_config
    close(read_embeddings(tmp_path / "model.pt"), encoded(opened(folder)))


def test_prompts_and_similarity_are_carried_along(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(
        tmp_path / "m", tokenizer, prompts={"query": "w4 w5 ", "document": ""}, similarity_fn_name="dot"
    )
    theirs, ours = opened(folder), opened(compile(folder, output=tmp_path / "b").folder, backend="onnx")
    assert ours.similarity_fn_name == theirs.similarity_fn_name == "dot"
    wanted = encoded(theirs, prompt_name="query")
    close(encoded(ours, prompt_name="query"), wanted)
    assert np.abs(wanted - encoded(theirs)).max() > 0.1


@pytest.mark.parametrize("cut", [{"max_seq_length": 12}, {"do_lower_case": True}], ids=str)
def test_a_delta_cuts_texts_as_its_backbone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, cut: dict[str, Any]):
    folder = save_sentence(tmp_path / "m", tokenizer, modules.Dense(32, 8), modules.Normalize(), pooling="cls")
    edit(folder / "sentence_bert_config.json", **cut)
    source, texts = read_source(folder), [*TEXTS, "GOOD Film"]
    save(source.model, tmp_path / "delta.pt", tokenizer=source.tokenizer, delta=True)
    bundle = compile(tmp_path / "delta.pt", CompileOptions(backbone=str(folder)), output=tmp_path / "b")
    close(embedded(bundle, texts), encoded(opened(folder), texts))


def test_a_delta_that_classifies_over_an_embedder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """What a folder's modules make of texts is not what the delta does, and transformers reads no file of theirs."""
    folder = save_sentence(tmp_path / "m", tokenizer)
    edit(folder / "sentence_bert_config.json", max_seq_length=12)
    model = convert(load_backbone(folder, "sequence-classification", num_labels=3), CodaConfig(reduction=2))
    save(model, tmp_path / "delta.pt", tokenizer=tokenizer, delta=True)
    assert read_source(tmp_path / "delta.pt", backbone=str(folder)).model.signature.max_length == 66


@pytest.mark.parametrize("prompt", ["", None])
def test_default_prompt_that_says_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, prompt: str | None):
    folder = save_sentence(tmp_path / "m", tokenizer)
    edit(folder / "config_sentence_transformers.json", default_prompt_name="query", prompts={"query": prompt})
    close(read_embeddings(folder), encoded(opened(folder)))


def test_prompt_left_out_of_the_pooling(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """Where the folder has no prompts it is the caller's, and stays so in sentence-transformers."""
    folder = save_sentence(tmp_path / "m", tokenizer)
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    theirs, ours = opened(folder), opened(compile(folder, output=tmp_path / "b").folder, backend="onnx")
    close(encoded(ours, TEXTS[:2], prompt="w4 w5 "), encoded(theirs, TEXTS[:2], prompt="w4 w5 "))


def test_a_mean_that_nobody_named_is_told(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert read_source(tmp_path).kind == "Hugging Face model without a pooling, read by the mean of its tokens"
    close(read_embeddings(tmp_path), encoded(opened(tmp_path)))


def test_cross_encoders_stay_classifiers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    from sentence_transformers import CrossEncoder

    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    theirs = CrossEncoder(str(tmp_path / "base"), device="cpu", max_length=12)
    theirs.save_pretrained(str(tmp_path / "m"))
    model = read_source(tmp_path / "m").model
    assert (model.coda_config.task, model.signature.max_length) == ("sequence-classification", 12)
    inputs = example_inputs(model, 2, 9)
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, theirs.model(**inputs).logits, atol=1e-5, rtol=1e-5)


def lengths(bundle: Bundle) -> set[int]:
    """Every place in which a bundle says how long a text may be."""
    core = json.loads((bundle.folder / "tokenizer.json").read_text())
    about = json.loads((bundle.folder / "tokenizer_config.json").read_text())
    sentence = json.loads((bundle.folder / "sentence_bert_config.json").read_text())
    said = (core["truncation"]["max_length"], about["model_max_length"], sentence["max_seq_length"])
    return {bundle.manifest.signature.max_length, *said, embedded_tokens(bundle)}


def embedded_tokens(bundle: Bundle) -> int:
    from coda_targets.modalities.text import TextCodec

    return int(TextCodec(bundle).encode(TEXTS).inputs["input_ids"].shape[1])


@pytest.mark.parametrize(
    ("tokens", "sentence", "wanted"),
    [(None, None, 66), (16, None, 16), (None, 12, 12), (16, 12, 12), (12, 16, 16), (16, 500, 66), (500, 500, 66)],
)
def test_texts_are_cut_where_sentence_transformers_cuts_them(
    folder: Path, tokens: int | None, sentence: int | None, wanted: int
):
    edit(folder / "sentence_bert_config.json", max_seq_length=sentence)
    if tokens is not None:
        edit(folder / "tokenizer_config.json", model_max_length=tokens)
    assert read_source(folder).model.signature.max_length == wanted
    if (sentence or 0) <= 66:  # else it does not stop at the last position itself
        assert opened(folder).max_seq_length == wanted
        close(read_embeddings(folder), encoded(opened(folder)))


def test_all_of_a_bundle_says_where_texts_are_cut(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    edit(folder / "sentence_bert_config.json", max_seq_length=12)
    bundle = compile(folder, output=tmp_path / "b")
    assert lengths(bundle) == {12}
    inspected(bundle)
    assert "embeds   mean of the tokens, Dense, LayerNorm\n" in capsys.readouterr().out
    wanted = encoded(opened(folder))
    close(embedded(bundle), wanted)
    close(encoded(opened(bundle.folder, backend="onnx")), wanted)


def test_without_a_list_the_smallest_counts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    tiny_backbone("bert", "feature-extraction").save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    edit(tmp_path / "m" / "tokenizer_config.json", model_max_length=16)
    edit(tmp_path / "m" / "sentence_bert_config.json", max_seq_length=20)
    assert lengths(compile(tmp_path / "m", output=tmp_path / "b")) == {16}


def test_texts_are_lowered(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = save_sentence(tmp_path / "m", tokenizer)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    texts = ["Good FILM", "bad plot", "good film"]
    bundle = compile(folder, output=tmp_path / "b")
    wanted = encoded(opened(folder), texts)
    close(embedded(bundle, texts), wanted)
    close(encoded(opened(bundle.folder, backend="onnx"), texts), wanted)
    np.testing.assert_array_equal(wanted[0], wanted[2])

"""Whatever says how long a text may be is heard, and all of a bundle says the same."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.compiler.exports import write
from tests.conftest import tiny_backbone, tiny_coda
from transformers import PreTrainedTokenizerFast, pipeline

from coda_compile import compile
from coda_compile.sources import read_source
from coda_models import CodaConfig, save, save_pretrained
from coda_ops.errors import CodaError
from coda_targets import Bundle
from coda_targets.errors import InputError
from coda_targets.modalities.text import TextCodec

LONG = "w9 w8 w7 " * 60


@pytest.fixture
def short(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One that cuts texts at 16 tokens."""
    words = deepcopy(tokenizer)
    words.model_max_length = 16
    return words


def lengths(bundle: Bundle) -> set[int]:
    core = json.loads((bundle.folder / "tokenizer.json").read_text())["truncation"]["max_length"]
    about = json.loads((bundle.folder / "tokenizer_config.json").read_text())["model_max_length"]
    inputs = TextCodec(bundle).encode([LONG]).inputs
    return {bundle.manifest.signature.max_length, core, about, inputs["input_ids"].shape[1]}


def test_a_classifier_answers_as_in_transformers(tmp_path: Path, short: PreTrainedTokenizerFast):
    model = tiny_backbone("bert")
    model.save_pretrained(tmp_path / "m")
    short.save_pretrained(tmp_path / "m")
    bundle = compile(tmp_path / "m", output=tmp_path / "b")
    assert lengths(bundle) == {16}
    encoded = TextCodec(bundle).encode([LONG])
    record = TextCodec(bundle).decode(bundle.run(encoded.inputs), encoded)[0]
    wanted = pipeline("text-classification", model=model, tokenizer=short)(LONG, truncation=True)[0]
    assert (record["label"], record["score"]) == (wanted["label"], pytest.approx(wanted["score"], abs=1e-5))
    with pytest.raises(InputError, match="input_ids has 17 tokens but this model takes at most 16: truncate"):
        bundle.run({"input_ids": [[5] * 17]})


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_checkpoints(tmp_path: Path, short: PreTrainedTokenizerFast, kind: str):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    (save if kind == "file" else save_pretrained)(model, tmp_path / "m", tokenizer=short)
    assert read_source(tmp_path / "m").model.signature.max_length == 16


def test_a_tokenizer_that_is_passed(tmp_path: Path, short: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    assert lengths(compile(model, output=tmp_path / "b", tokenizer=short)) == {16}
    assert model.signature.max_length == 66


def test_graphs_of_others(tmp_path: Path, short: PreTrainedTokenizerFast):
    path = write(tiny_backbone("bert"), tmp_path / "m")
    assert lengths(compile(path, output=tmp_path / "b", tokenizer=short)) == {16}


@pytest.mark.parametrize("longest", [0, -1, "many", True, float("nan")])
def test_a_limit_that_is_none(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, longest: Any):
    tiny_backbone("bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": longest}))
    with pytest.raises(CodaError, match="model_max_length is .*, which is no number of tokens: set it"):
        read_source(tmp_path)

"""A checkpoint for the commands to read."""

from pathlib import Path

import pytest
from tests.conftest import tiny_coda
from transformers import PreTrainedTokenizerFast

from coda_models import CodaConfig, save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model.pt that carries its tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save(tiny_coda("bert", CodaConfig(reduction=2)), path, tokenizer=tokenizer)
    return path

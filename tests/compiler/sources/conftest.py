"""What several tests of sources share."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sentence_transformers.sentence_transformer import modules
from tests.sentences import save_sentence
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    behind = [modules.Dense(32, 8), modules.LayerNorm(8)]
    return save_sentence(tmp_path_factory.mktemp("whole") / "m", tokenizer, *behind)


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    """A folder of each kind of module that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "m"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The library says through a logger of its own what is not active yet."""
    logger = logging.getLogger("adapters")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)

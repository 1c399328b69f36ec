"""A model uploaded to a hub that is not there: what it is given, and what it says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import example_inputs, tiny_coda
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from coda_models import from_pretrained, hub
from coda_models.errors import CheckpointError


class Hub:
    """Keeps what is said to it, and the answers of the model that was uploaded."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.asked: dict[str, Any] = {}

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.asked |= options
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
        self.asked |= options
        self.folder, loaded = Path(folder_path), from_pretrained(folder_path)
        assert loaded.tokenizer is not None
        self.logits: Tensor = loaded.model(**example_inputs(loaded.model, 2, 9)).logits
        return SimpleNamespace(commit_url="https://hub.example/commit")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Hub]:
    hubs: list[Hub] = []

    def make(token: str | None = None) -> Hub:
        hubs.append(Hub(token))
        return hubs[-1]

    monkeypatch.setattr(hub, "HfApi", make)
    return hubs


def test_a_whole_folder_is_uploaded_and_removed(made: list[Hub], tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda()
    found = model.push_to_hub("tiny", tokenizer=tokenizer, private=True, token="secret", revision="try")
    assert found == "https://hub.example/commit"
    (one,) = made
    assert one.token == "secret"
    assert one.asked == {
        "private": True,
        "exist_ok": True,
        "repo_id": "me/tiny",
        "revision": "try",
        "commit_message": "Upload a CoDA model",
    }
    torch.testing.assert_close(one.logits, model(**example_inputs(model, 2, 9)).logits)
    assert not one.folder.exists()


def test_what_a_hub_refuses_is_one_sentence(made: list[Hub], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden\nrequest id 7")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(CheckpointError, match="^tiny cannot be written to the hub: 403 Forbidden$"):
        tiny_coda().push_to_hub("tiny")

"""Training that routes with steps keeps two folders beside its output while it lasts."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from tests.compiler.tune.test_train import CLASSES, raising, save_encoder, trained, write
from transformers import PreTrainedTokenizerFast

from coda_compile import RouteOptions
from coda_compile.tune import train as tune_train
from coda_models.errors import CheckpointError


def test_what_steps_left_is_told_of_before_training(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder_folder = save_encoder(tmp_path / "encoder", tokenizer)
    data, left = write(tmp_path / "texts.csv", CLASSES), tmp_path / ".trained-r_r_.pt.steps"
    options: dict[str, Any] = {"reductions": ["2"], "routing": RouteOptions(steps=3)}

    def interrupted(*_: Any, **__: Any) -> None:
        left.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune_train, "route", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"\.train and .*\.steps keep what is done: .* or remove them$"):
            trained(data, encoder_folder, tmp_path / "trained.pt", **options)
    rmtree(tmp_path / ".trained.pt.train")
    monkeypatch.setattr(tune_train, "fit", raising(AssertionError()))
    with pytest.raises(CheckpointError, match=r"\.steps holds what steps of another run left when it was interrupted"):
        trained(data, encoder_folder, tmp_path / "trained.pt", **options)

"""The recipe on a few texts: what fit leaves behind, and which callbacks it takes."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_coda
from tests.models.training.test_train import rows
from transformers import PreTrainedTokenizerFast, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from coda_models import CodaConfig, CodaModel
from coda_models.errors import CheckpointError
from coda_models.training import recipe
from coda_models.training.collator import TextCollator
from coda_models.training.recipe import DENSE, ROUTED, fit
from coda_models.training.train import AnnealReduction, DrawReduction, GrowLength
from coda_models.training.watch import Watch
from coda_ops.errors import OptionError

SHORT = replace(DENSE, epochs=1, batch=8, stages=((8, 0.5), (16, 1.0)))


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The callbacks of every trainer that is made."""
    seen: list[Any] = []
    trainer = recipe.CodaTrainer

    def make(**options: Any) -> Any:
        seen.extend(options["callbacks"])
        return trainer(**options)

    monkeypatch.setattr(recipe, "CodaTrainer", make)
    return seen


def test_a_dense_run_has_nothing_to_anneal(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, callbacks: list[Any]):
    model, collator = tiny_coda("bert", CodaConfig(reduction=1)), TextCollator(tokenizer, 99)
    fit(model, SHORT, rows(), collator, reduction=1, folder=tmp_path / "run")
    assert not any(isinstance(callback, AnnealReduction) for callback in callbacks)
    assert (collator.tokens, collator.drop, collator.splice) == (16, SHORT.drop, SHORT.splice)
    assert not model.training
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"hidden": 1.0, "anneal": 0.5, "dropout": None}])
def test_a_taught_run_ends_at_its_reduction(
    changes: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast, callbacks: list[Any]
):
    model, teacher = (tiny_coda("bert", CodaConfig(reduction=1)) for _ in "ab")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    taught = replace(ROUTED, epochs=1, stages=((16, 1.0),), **changes)
    reductions = ["1", "7/2"]
    fit(
        model,
        taught,
        rows(),
        TextCollator(tokenizer, 16),
        reduction=reductions,
        folder=tmp_path / "run",
        teacher=teacher,
    )
    assert any(isinstance(callback, AnnealReduction) for callback in callbacks) == ("anneal" in changes)
    assert [layer.reduction for layer in model.coda_layers()] == [1, Fraction(7, 2)]
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize(("share", "left"), [(0.0, {0.0}), (0.3, {0.3}), (None, {0.1})])
def test_dropout(share: float | None, left: set[float], tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model = tiny_coda("bert", CodaConfig(reduction=2))
    fit(
        model, replace(SHORT, dropout=share), rows(8), TextCollator(tokenizer, 16), reduction=2, folder=tmp_path / "run"
    )
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == left
    assert {layer.block.attention.dropout for layer in model.coda_layers()} == left


def test_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """Even one with checkpoints in it, which another Trainer may have left."""
    for name in ("notes.txt", "checkpoint-7/trainer_state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    model = tiny_coda("bert", CodaConfig(reduction=1))
    with pytest.raises(CheckpointError, match="holds something else than an interrupted run: give a new folder"):
        fit(model, SHORT, rows(8), TextCollator(tokenizer, 16), reduction=1, folder=tmp_path)
    with pytest.raises(CheckpointError, match="notes.txt holds something else"):
        fit(model, SHORT, rows(8), TextCollator(tokenizer, 16), reduction=1, folder=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert (tmp_path / "checkpoint-7" / "trainer_state.json").read_text() == "precious"


@pytest.mark.parametrize("interrupted", [True, False])
def test_what_was_put_into_the_folder_meanwhile_survives(
    interrupted: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_coda("bert", CodaConfig(reduction=1))
    train = recipe.CodaTrainer.train

    def putting(self: Any, **options: Any) -> None:
        train(self, **options)
        assert get_last_checkpoint(tmp_path / "run") is not None
        (tmp_path / "run" / "notes.txt").write_text("precious")
        if interrupted:
            raise KeyboardInterrupt

    def run() -> float | None:
        return fit(model, SHORT, rows(8), TextCollator(tokenizer, 16), reduction=1, folder=tmp_path / "run")

    with monkeypatch.context() as patch:
        patch.setattr(recipe.CodaTrainer, "train", putting)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                run()
        else:
            assert run() is not None
    if interrupted:
        assert run() is None  # goes on from the epoch that was whole
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("changes", [{"drop": 0.5}, {"hidden": 1.0}])
def test_a_teacher_of_labels_alone_reads_every_text_once_and_whole(
    changes: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    model, teacher = (tiny_coda("bert", CodaConfig(reduction=1)) for _ in "ab")
    read: list[Any] = []
    teacher.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"].tolist()), with_kwargs=True
    )
    taught = replace(ROUTED, epochs=3, stages=((16, 1.0),), **changes)
    fit(model, taught, rows(), TextCollator(tokenizer, 16), reduction=2, folder=tmp_path / "run", teacher=teacher)
    if "hidden" in changes:
        assert len(read) == 9
    else:
        assert [text for batch in read for text in batch] == [row["input_ids"] for row in rows()]


def test_epochs_and_losses_are_told_and_nothing_is_printed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
):
    told: list[tuple[str, int, int]] = []
    model, collator = tiny_coda("bert", CodaConfig(reduction=1)), TextCollator(tokenizer, 16)
    twice = replace(SHORT, epochs=2)
    fit(model, twice, rows(), collator, reduction=1, folder=tmp_path / "run", progress=lambda *it: told.append(it))
    assert [(done, steps) for _, done, steps in told] == [(i, 6) for i in range(1, 7)]
    said = [what for what, _, _ in told]
    assert said[:3] == ["epoch 1 of 2"] * 3
    assert all(what.startswith("epoch 2 of 2, loss ") for what in said[3:])
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")
def test_a_loss_that_is_no_number_ends_it_before_its_epoch_is_saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    model, collator = tiny_coda("bert", CodaConfig(reduction=1)), TextCollator(tokenizer, 16)

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        calls.append(1)
        return output * float("nan") if len(calls) > 4 else output

    calls: list[int] = []
    model.head.register_forward_hook(spoil)
    with pytest.raises(OptionError, match=r"the loss is nan after step 6: give a lower learning_rate than 0\.0005"):
        fit(model, replace(SHORT, epochs=3), rows(), collator, reduction=1, folder=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_an_epoch_that_was_cut_short_while_it_was_saved_does_not_count(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    """It goes on from the epoch before, to the bit."""

    def run(name: str) -> tuple[CodaModel, float | None]:
        model, collator = tiny_coda("bert", CodaConfig(reduction=1)), TextCollator(tokenizer, 16)
        twice = replace(SHORT, epochs=2)
        return model, fit(model, twice, rows(8), collator, reduction=1, folder=tmp_path / name)

    save = TrainerState.save_to_json

    def cut(self: Any, path: str) -> None:
        if "checkpoint-2" in path:
            raise KeyboardInterrupt
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", cut)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    assert (tmp_path / "cut" / "checkpoint-2").is_dir()
    (whole, _), (again, seconds) = run("whole"), run("cut")
    assert seconds is None
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
    assert not (tmp_path / "cut").exists()


def test_drawing_takes_the_place_of_annealing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, callbacks: list[Any]):
    model = tiny_coda("bert", CodaConfig(reduction=1))
    drawn = replace(SHORT, drawn=("1", "2", "4"))
    fit(model, drawn, rows(), TextCollator(tokenizer, 16), reduction=4, folder=tmp_path / "run")
    assert [type(callback) for callback in callbacks] == [GrowLength, Watch, DrawReduction]
    assert model.coda_config.reduction == 4

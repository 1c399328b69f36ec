"""Distillation on a few texts: nearer to the dense model, its best weights kept, and the same where it was cut off."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_coda
from tests.models.fitting.texts import Batch, batched, texts

from coda_models import CodaConfig, CodaModel, route_model
from coda_models.digest import tensor_digest
from coda_models.errors import CheckpointError, ConfigError
from coda_models.fitting.answers import distance, rows_of_answers
from coda_models.training import distill as module
from coda_models.training.distill import Distilled, Steps, distill

BATCHES, ASIDE, HELD_OUT = batched(texts(192), 16), batched(texts(32, seed=1), 16), batched(texts(64, seed=2), 16)
FAST = Steps(rate=3e-3, fitted_rate=3e-3, evaluations=4)
TASKS = [
    ("sequence-classification", None),
    ("sequence-classification", "multi_label_classification"),
    ("sequence-classification", "regression"),
    ("token-classification", None),
    ("feature-extraction", None),
]


def pair(task: str = "sequence-classification", problem: str | None = None) -> tuple[CodaModel, CodaModel]:
    """A dense model, and one that was routed, on few texts, so that more can mend it."""
    return deepcopy(routed_once(task, problem))


@cache
def routed_once(task: str, problem: str | None) -> tuple[CodaModel, CodaModel]:
    dense = tiny_coda("bert", CodaConfig(reduction=1, bottleneck=0, task=task))
    dense.hf_config.problem_type = problem
    return dense, route_model(dense, BATCHES[:2], reduction=3, stand_in=8, key_value_rank=8)


def taught(model: CodaModel, dense: CodaModel, folder: Path, **options: Any) -> Distilled:
    return distill(model, dense, BATCHES, folder=folder, **{"aside": ASIDE, "steps": 24, "recipe": FAST, **options})


@torch.no_grad()
def apart(model: CodaModel, dense: CodaModel, batches: list[Batch]) -> float:
    """Distance of two models' answers, mean over batches."""
    total = 0.0
    for inputs in batches:
        own, wanted = (rows_of_answers(one, one(**inputs), one.mask(inputs)) for one in (model, dense))
        total += float(distance(model, wanted, own)) / len(batches)
    return total


@pytest.mark.parametrize(("task", "problem"), TASKS)
def test_steps_bring_every_task_nearer_on_texts_that_no_step_saw(task: str, problem: str | None, tmp_path: Path):
    dense, model = pair(task, problem)
    state, trained = tensor_digest(dense.state_dict()), [p.requires_grad for p in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    far = apart(model, dense, HELD_OUT)
    found = taught(model, dense, tmp_path / "run", steps=48)
    assert apart(model, dense, HELD_OUT) < 0.95 * far
    assert found.after == pytest.approx(apart(model, dense, ASIDE), rel=1e-4)
    assert found.after < found.before
    assert 0 < found.best <= 48
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= set(model.trainable_names())
    assert {"router", "stand_in", "key_value", "norm1"} <= {part for name in changed for part in name.split(".")}
    assert tensor_digest(dense.state_dict()) == state
    assert [p.requires_grad for p in model.parameters()] == trained
    assert not model.training
    assert list(tmp_path.iterdir()) == []


class CutOffError(Exception):
    """Stands for Ctrl-C."""


def stopping(at: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, steps: int) -> None:
        if done == at:
            raise CutOffError

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Distilled, str]:
    """What a run that nothing cuts off comes to."""
    dense, model = pair()
    found = taught(model, dense, tmp_path_factory.mktemp("whole") / "run")
    return found, tensor_digest(model.state_dict())


@pytest.mark.parametrize("at", [1, 12, 13, 24])
def test_a_run_that_was_cut_off_ends_the_same_to_the_bit(at: int, whole: tuple[Distilled, str], tmp_path: Path):
    dense, model = pair()
    with pytest.raises(CutOffError):
        taught(model, dense, tmp_path / "run", progress=stopping(at))
    _, again = pair()
    told: list[tuple[str, int, int]] = []
    found = taught(again, dense, tmp_path / "run", progress=lambda *one: told.append(one))
    assert told == [("steps", step, 24) for step in range((at - 1) // 6 * 6, 25)]
    assert (found, tensor_digest(again.state_dict())) == whole
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_was_being_written_does_not_count(tmp_path: Path):
    dense, model = pair()
    with pytest.raises(CutOffError):
        taught(model, dense, tmp_path, progress=stopping(13))
    (tmp_path / "checkpoint-12" / "trainer_state.json").unlink()
    half = tmp_path / "checkpoint-18"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"epoch"')
    told: list[int] = []
    taught(pair()[1], dense, tmp_path, progress=lambda what, done, steps: told.append(done))
    assert told[0] in (0, 6)


def test_weights_that_steps_made_worse_are_not_kept(tmp_path: Path):
    """Far too large a rate: patience ends it, and it ends where it began."""
    dense, model = pair()
    state = tensor_digest(model.state_dict())
    told: list[int] = []
    wild = Steps(rate=0.3, fitted_rate=0.3, evaluations=8, patience=2)
    found = taught(model, dense, tmp_path / "run", recipe=wild, progress=lambda what, done, steps: told.append(done))
    assert (found.best, found.after) == (0, found.before)
    assert told[-1] == 6  # of 24: two looks, every third step
    assert tensor_digest(model.state_dict()) == state


def test_a_loss_that_is_nan_ends_it_with_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dense, model = pair()
    told: list[int] = []

    def broken(*args: Any) -> Any:
        loss = distance(*args)
        return loss * float("nan") if told and told[-1] == 14 and loss.requires_grad else loss

    monkeypatch.setattr(module, "distance", broken)
    found = taught(model, dense, tmp_path / "run", progress=lambda what, done, steps: told.append(done))
    assert found.diverged == 15
    assert found.best in (6, 12)
    assert found.after == pytest.approx(apart(model, dense, ASIDE), rel=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_what_was_fitted_has_a_rate_of_its_own(tmp_path: Path):
    """At rate 0 it stays where it was, and nothing else does."""
    dense, model = pair()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    taught(model, dense, tmp_path / "run", recipe=Steps(rate=1e-4, fitted_rate=0.0), steps=10)
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in model.trainable_names() if ".stand_in." not in name and ".key_value." not in name}


def test_it_does_without_dropout_and_leaves_it(tmp_path: Path):
    """Two runs of other global seeds are one run; dropout would tell them apart."""
    digests = []
    for seed in (1, 2):
        dense, model = pair()
        torch.manual_seed(seed)
        taught(model, dense, tmp_path / "run", seed=0)
        digests.append(tensor_digest(model.state_dict()))
        shares = {one.p for one in model.modules() if isinstance(one, torch.nn.Dropout)}
        assert shares == {layer.block.attention.dropout for layer in model.coda_layers()} == {0.1}
    assert digests[0] == digests[1]


def test_the_seed_draws_the_order(tmp_path: Path):
    digests = []
    for seed in (0, 1):
        dense, model = pair()
        taught(model, dense, tmp_path / "run", seed=seed, steps=4)
        digests.append(tensor_digest(model.state_dict()))
    assert digests[0] != digests[1]


@pytest.mark.parametrize("other", [{"steps": 25}, {"seed": 1}, {"recipe": Steps()}, {"aside": ASIDE[:1]}])
def test_another_run_is_refused_and_the_folder_left(other: dict[str, Any], tmp_path: Path):
    dense, model = pair()
    with pytest.raises(CutOffError):
        taught(model, dense, tmp_path / "run", progress=stopping(13))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="give those again to go on, or remove the folder$"):
        taught(pair()[1], dense, tmp_path / "run", **other)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_damaged_state_is_refused(name: str, tmp_path: Path):
    dense, model = pair()
    with pytest.raises(CutOffError):
        taught(model, dense, tmp_path / "run", progress=stopping(13))
    (tmp_path / "run" / "checkpoint-12" / name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"checkpoint-12 is damaged \(.+\): remove .*run to begin anew"):
        taught(pair()[1], dense, tmp_path / "run")


def test_an_error_of_a_step_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dense, model = pair()
    with pytest.raises(CutOffError):
        taught(model, dense, tmp_path / "run", progress=stopping(13))

    def failing(*args: Any) -> Any:
        loss = distance(*args)
        if loss.requires_grad:
            raise RuntimeError("out of memory")
        return loss

    monkeypatch.setattr(module, "distance", failing)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        taught(pair()[1], dense, tmp_path / "run")


def test_what_cannot_be_taught_is_said(tmp_path: Path):
    dense, model = pair()
    with pytest.raises(ConfigError, match="0 steps are none: give 1 or more"):
        taught(model, dense, tmp_path / "run", steps=0)
    with pytest.raises(ConfigError, match="no texts to fit on"):
        taught(model, dense, tmp_path / "run", aside=[])
    with torch.no_grad():
        dense.head[-1].bias.fill_(float("nan"))  # type: ignore[index,operator,union-attr]
    with pytest.raises(ConfigError, match="the dense model gives NaN or infinite values for these texts"):
        taught(model, dense, tmp_path / "other")
